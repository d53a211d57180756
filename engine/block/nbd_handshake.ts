/**
 * The server's part of an NBD handshake: which export, and in which form. Pure.
 *
 * @module
 */

import { ByteWriter } from "../stream/byte_writer.ts";
import { NBD_PAYLOAD_BYTES_MAX, PAGE_BYTES } from "../limits.ts";
import {
  NBD_EXPORT_FLAG,
  NBD_HANDSHAKE,
  NBD_INFO,
  NBD_OPTION,
  NBD_OPTION_REPLY,
  nbdExport,
  type NbdForm,
  nbdOptionReply,
} from "./nbd.ts";

/** What is offered. */
export interface NbdExportDescription {
  /** What the client asks for. */
  readonly name: string;
  readonly sizeBytes: number;
}

/** What the server answers. */
export interface HandshakeAnswer {
  readonly bytes: Uint8Array;
  /** Requests follow, in this form. */
  readonly form?: NbdForm;
  /** The connection ends here. */
  readonly isEnd?: boolean;
}

const NOTHING = new Uint8Array(0);

/** One handshake. Extended headers are refused, and there is no metadata to be asked for. */
export class NbdServerHandshake {
  readonly #export: NbdExportDescription;
  #structured = false;
  #zeroes = true;

  constructor(description: NbdExportDescription) {
    this.#export = description;
  }

  /** The client's flags. */
  flags(flags: number): HandshakeAnswer {
    const { FIXED_NEWSTYLE, NO_ZEROES } = NBD_HANDSHAKE;
    this.#zeroes = (flags & NO_ZEROES) === 0;
    const isKnown = (flags & ~(FIXED_NEWSTYLE | NO_ZEROES)) === 0;
    return { bytes: NOTHING, isEnd: !isKnown || (flags & FIXED_NEWSTYLE) === 0 };
  }

  /** One option of the client's. */
  option(option: number, data: Uint8Array): HandshakeAnswer {
    const { ACK, SERVER, INFO, UNSUPPORTED, INVALID, UNKNOWN } = NBD_OPTION_REPLY;
    const reply = (reply: number, data?: Uint8Array) => nbdOptionReply(option, reply, data);
    const { name, sizeBytes } = this.#export;
    switch (option) {
      case NBD_OPTION.EXPORT_NAME: {
        if (new TextDecoder().decode(data) !== name) return { bytes: NOTHING, isEnd: true };
        const bytes = nbdExport(sizeBytes, this.#flags(), this.#zeroes);
        return { bytes, form: this.#form() };
      }
      case NBD_OPTION.ABORT:
        return { bytes: reply(ACK), isEnd: true };
      case NBD_OPTION.LIST: {
        const named = new TextEncoder().encode(name);
        const entry = new ByteWriter().u32(named.length).bytes(named).finish();
        return { bytes: Uint8Array.from([...reply(SERVER, entry), ...reply(ACK)]) };
      }
      case NBD_OPTION.STRUCTURED_REPLY:
        this.#structured = true;
        return { bytes: reply(ACK) };
      case NBD_OPTION.INFO:
      case NBD_OPTION.GO: {
        const wanted = nameIn(data);
        if (wanted === undefined) return { bytes: reply(INVALID) };
        if (wanted !== name) return { bytes: reply(UNKNOWN) };
        const about = new ByteWriter().u16(NBD_INFO.EXPORT).u64(sizeBytes).u16(this.#flags());
        const sizes = new ByteWriter().u16(NBD_INFO.BLOCK_SIZE)
          .u32(1).u32(PAGE_BYTES).u32(NBD_PAYLOAD_BYTES_MAX);
        const infos = [about, sizes].flatMap((info) => [...reply(INFO, info.finish())]);
        const bytes = Uint8Array.from([...infos, ...reply(ACK)]);
        return option === NBD_OPTION.GO ? { bytes, form: this.#form() } : { bytes };
      }
      case NBD_OPTION.LIST_META_CONTEXT:
      case NBD_OPTION.SET_META_CONTEXT:
        return { bytes: reply(this.#structured ? ACK : INVALID) };
      default:
        return { bytes: reply(UNSUPPORTED) };
    }
  }

  #form(): NbdForm {
    return this.#structured ? "structured" : "simple";
  }

  #flags(): number {
    const { HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF } =
      NBD_EXPORT_FLAG;
    const flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES;
    return this.#structured ? flags | SEND_DF : flags;
  }
}

/** The name in front of what is asked about it: u32 length, name, u16 count, u16 for each. */
function nameIn(data: Uint8Array): string | undefined {
  if (data.length < 6) return undefined;
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const length = view.getUint32(0);
  if (4 + length + 2 > data.length) return undefined;
  if (data.length !== 6 + length + 2 * view.getUint16(4 + length)) return undefined;
  return new TextDecoder().decode(data.subarray(4, 4 + length));
}
