/**
 * TCP's flags (RFC 9293, section 3.1), as far as they are compared.
 *
 * @module
 */

/** Bits of {@linkcode FRAME.FLAGS}. */
export const TCP_FLAG = { FIN: 0x01, SYN: 0x02, RST: 0x04, ACK: 0x10 } as const;
