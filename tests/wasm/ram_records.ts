/**
 * RAM records of QEMU's migration stream, written and read the slow way (`migration/ram.c`,
 * `migration/xbzrle.c`), for tests of the kernels that do it fast.
 *
 * @module
 */

const PAGE_BYTES = 4096;

/** One record: header, optional block name, and what follows. */
export interface RamRecord {
  readonly flags: number;
  readonly page: number;
  readonly name?: string;
  readonly body: Uint8Array;
}

/** The bytes of a record. */
export function writeRecord({ flags, page, name, body }: RamRecord): Uint8Array<ArrayBuffer> {
  const nameBytes = name === undefined ? [] : [name.length, ...new TextEncoder().encode(name)];
  const bytes = new Uint8Array(8 + nameBytes.length + body.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(page) * BigInt(PAGE_BYTES) + BigInt(flags));
  bytes.set(nameBytes, 8);
  bytes.set(body, 8 + nameBytes.length);
  return bytes;
}

export function concat(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** Take records apart, as QEMU's `ram_load_precopy` does; throws where that would fail. */
export function readRecords(bytes: Uint8Array): RamRecord[] {
  const records: RamRecord[] = [];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let at = 0;
  while (at < bytes.length) {
    const header = view.getBigUint64(at);
    const flags = Number(header & 0xfffn);
    at += 8;
    let name: string | undefined;
    if ((flags & 0x20) === 0) {
      const length = view.getUint8(at);
      name = new TextDecoder().decode(bytes.subarray(at + 1, at + 1 + length));
      at += 1 + length;
    }
    const length = bodyLength(flags, view, at);
    records.push({
      flags,
      page: Number(header >> 12n),
      ...(name === undefined ? {} : { name }),
      body: bytes.slice(at, at + length),
    });
    at += length;
  }
  if (at !== bytes.length) throw new RangeError("Cannot read records: the last one is cut off");
  return records;
}

function bodyLength(flags: number, view: DataView, at: number): number {
  switch (flags & ~0x20) {
    case 0x02:
      return 1;
    case 0x08:
      return PAGE_BYTES;
    case 0x40:
      if (view.getUint8(at) !== 1) throw new RangeError("Cannot read record: not XBZRLE");
      return 3 + view.getUint16(at + 1);
    default:
      throw new RangeError(`Cannot read record: flags ${flags}`);
  }
}

/** Bring a page up to date with a record. */
export function applyRecord({ flags, body }: RamRecord, page: Uint8Array): void {
  switch (flags & ~0x20) {
    case 0x02:
      page.fill(0);
      return;
    case 0x08:
      page.set(body);
      return;
    case 0x40: {
      let at = 3;
      let covered = 0;
      const number = () => {
        const low = body[at++] ?? NaN;
        return low < 0x80 ? low : low & 0x7f | (body[at++] ?? NaN) << 7;
      };
      while (at < body.length) {
        covered += number();
        const length = number();
        page.set(body.subarray(at, at + length), covered);
        at += length;
        covered += length;
      }
    }
  }
}
