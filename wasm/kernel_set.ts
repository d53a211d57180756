/**
 * What a set of kernels can do: the one contract that `wasm/assembly` (WebAssembly) and
 * `wasm/reference` (plain TypeScript, the specification) both fulfil, so that the same test suite
 * and the same engine run on either.
 *
 * Every kernel works on one linear memory and takes byte addresses in it. Arguments are checked at
 * the door: an address range outside the memory is a `RangeError` and nothing was touched. *Content*
 * is never trusted and never throws: a kernel that reads foreign bytes returns a negative number for
 * malformed input and never touches memory outside the ranges it was given. Of a target range, the
 * bytes behind what a kernel says it wrote are unspecified, and all of them after a negative result.
 *
 * Some kernels exchange a **page table**: `capacity` entries of 8 bytes, little-endian,
 *
 * ```text
 *   byte 0..3   page number (of the whole guest, all RAM blocks laid one after another)
 *   byte 4..7   address of the 4096 bytes of its content in this memory; 0 = a page of zeros
 * ```
 *
 * @module
 */

/** Size of one entry of a page table, in bytes. */
export const PAGE_ENTRY_BYTES = 8;

/** Result of {@linkcode KernelSet.scanRam}. */
export const SCAN = {
  /** The record at the position is not complete: more bytes are needed. */
  MORE: 0,
  /** The record at the position is none of the two common ones: the caller reads it. */
  OTHER: 1,
  /** The page table is full. */
  FULL: 2,
  /** The record at the position addresses a page outside its block. */
  BAD_ADDRESS: -1,
} as const;

/** How {@linkcode KernelSet.encodePages} treats pages. */
export const ENCODE = {
  /** Compare with the mirror, write what changed (zero, XBZRLE or whole), and update the mirror. */
  DELTA: 0,
  /** Write every page whole or as zero; the mirror is neither read nor written. */
  WHOLE: 1,
  /** As WHOLE, but pages of zeros are left out (counted as UNCHANGED): a fresh VM has them already. */
  SEED: 2,
} as const;

/** Indexes of the 32-bit counters that {@linkcode KernelSet.encodePages} adds to. */
export const ENCODE_COUNTER = {
  UNCHANGED: 0,
  ZERO: 1,
  XBZRLE: 2,
  WHOLE: 3,
} as const;

/** Size of one entry of a frame table, in bytes. */
export const FRAME_ENTRY_BYTES = 64;

/** Size of one entry of the table that {@linkcode KernelSet.comparePairs} takes, in bytes. */
export const PAIR_ENTRY_BYTES = 16;

/**
 * Longest frame of a chardev: QEMU's own buffer for one (`NET_BUFSIZE` in `include/net/net.h`), which it
 * refuses more than.
 */
export const FRAME_BYTES_MAX = 69632;

/** Result of {@linkcode KernelSet.scanFrames}; MORE and FULL are those of {@linkcode SCAN}. */
export const FRAME_SCAN = {
  /** The record at the position is not complete: more bytes are needed. */
  MORE: 0,
  /** The frame table is full. */
  FULL: 2,
  /** The record at the position has a length of zero, or of more than {@linkcode FRAME_BYTES_MAX}. */
  BAD_LENGTH: -1,
  /** The record at the position has a vnet header longer than itself. */
  BAD_VNET_LENGTH: -2,
} as const;

/**
 * The words of a frame table's entry: index of each u32, little-endian. Words that say nothing about a
 * kind are 0, as are all but START, SIZE and KIND up to {@linkcode FRAME_KIND.MALFORMED}.
 *
 * ```text
 *    0 START          address of the record, that is of its be32 length
 *    1 SIZE           bytes of the whole record
 *    2 KIND           one of FRAME_KIND
 *    3 FLAGS          TCP: the flags' byte; FRAGMENT: 1 when more fragments follow
 *    4 HASH           of words 5 to 9, with the seed
 *    5 SOURCE         IPv4 address, or an IPv6 address folded to 32 bits
 *    6 DESTINATION    likewise
 *    7 PORTS          source << 16 | destination; the identifier of an ICMP echo
 *    8 PROTOCOL       IP protocol number | 256 when it is IPv6
 *    9 VLAN           number of tags << 24 | outer id << 12 | inner id (| id, where there is one)
 *   10 ADDRESSES      address of the source address, which the destination's follows
 *   11 PAYLOAD        address of the payload: TCP and UDP behind their header, ICMP with its header,
 *                     IP and FRAGMENT behind the IP headers
 *   12 LENGTH         bytes of it, as the headers say: padding of the frame is no part of it
 *   13 SEQUENCE       TCP: sequence number; FRAGMENT: offset in bytes
 *   14 ACKNOWLEDGMENT TCP: acknowledgment number; FRAGMENT: identification
 *   15 NETWORK        address of the IP header
 * ```
 */
export const FRAME = {
  START: 0,
  SIZE: 1,
  KIND: 2,
  FLAGS: 3,
  HASH: 4,
  SOURCE: 5,
  DESTINATION: 6,
  PORTS: 7,
  PROTOCOL: 8,
  VLAN: 9,
  ADDRESSES: 10,
  PAYLOAD: 11,
  LENGTH: 12,
  SEQUENCE: 13,
  ACKNOWLEDGMENT: 14,
  NETWORK: 15,
} as const;

/** Bit of {@linkcode FRAME.PROTOCOL} that says IPv6. */
export const FRAME_IPV6 = 0x100;

/** What a frame is; up to MALFORMED nothing in it is compared. */
export const FRAME_KIND = {
  /** Not IP: LLDP, an 802.3 length, a third VLAN tag. */
  OTHER: 0,
  ARP: 1,
  /** IPv6 neighbor discovery (ICMPv6 types 133 to 137): what ARP is to IPv4. */
  NEIGHBOR: 2,
  /** A header that says more than its frame holds, or contradicts itself. */
  MALFORMED: 3,
  TCP: 4,
  UDP: 5,
  ICMP: 6,
  /** Any other protocol over IP. */
  IP: 7,
  /** A part of an IP datagram. */
  FRAGMENT: 8,
} as const;

/** The kernels, over one memory. */
export interface KernelSet {
  /** The whole memory. A view taken before {@linkcode alloc} may be
   * detached or too short: read it anew. May be shared with other threads. */
  readonly bytes: Uint8Array;

  /**
   * Reserve memory for good (there is no free: an arena lives as long as its owner).
   *
   * @returns Address of `sizeBytes` zeroed bytes, aligned to 16 (to 4096 from 4096 bytes on)
   * @throws {RangeError} when the memory cannot grow that far
   */
  alloc(sizeBytes: number): number;

  /**
   * Walk RAM records of QEMU's migration stream (`migration/ram.c`) that continue the current block:
   * be64 `offset | flags`, flags exactly `PAGE|CONTINUE` (0x28, 4096 bytes follow) or
   * `ZERO|CONTINUE` (0x22, one fill byte 0x00 follows). Each is appended to the page table.
   * Stops at the first record it cannot take.
   *
   * @param at Address of the first record
   * @param end Address behind the last byte that has arrived
   * @param firstPage Page number of the current block's first page
   * @param pages Length of the current block in pages; 0 when there is none yet
   * @param table Address of the page table
   * @param used Entries already in it
   * @param capacity Entries it has room for
   * @param out Address of two u32: the position reached, and the entries used then
   * @returns one of {@linkcode SCAN}
   */
  scanRam(
    at: number,
    end: number,
    firstPage: number,
    pages: number,
    table: number,
    used: number,
    capacity: number,
    out: number,
  ): number;

  /**
   * Copy the pages of a table into a mirror that holds pages `firstPage .. firstPage + pages`.
   * Zero pages that are zero already are not written (untouched memory stays untouched).
   *
   * @returns Entries applied, or -1 when an entry lies outside (those before it were applied)
   */
  applyPages(
    table: number,
    count: number,
    mirror: number,
    firstPage: number,
    pages: number,
  ): number;

  /**
   * Set the bit of every page in a table, in a bitmap whose bit 0 is `firstPage`.
   *
   * @returns Entries marked, or -1 when one is outside (those before it were marked)
   */
  markPages(
    table: number,
    count: number,
    bitmap: number,
    firstPage: number,
    pages: number,
  ): number;

  /**
   * Fill a page table from the set bits of a bitmap, from bit `from` on; contents are taken from the
   * mirror. The bits are left as they are.
   *
   * @param out Address of two u32: the bit to continue from (`pages` when done), the entries used
   * @returns Entries used
   */
  collectPages(
    bitmap: number,
    from: number,
    pages: number,
    firstPage: number,
    mirror: number,
    table: number,
    capacity: number,
    out: number,
  ): number;

  /**
   * Write entries `from .. count` of a page table as RAM records of QEMU's migration stream: zero
   * pages as ZERO, small changes as XBZRLE (`0x40`: byte 0x01, be16 length, body), the rest as PAGE;
   * unchanged pages (DELTA only) are dropped. All pages must belong to `firstPage .. firstPage + pages`,
   * the part of one RAM block that this memory mirrors (a block of several GiB is spread over several
   * memories, so the part may begin inside the block); encoding stops at the first that does not, or
   * when the next record might not fit (a whole page has to), or whose content lies outside the
   * memory. A record's address is `(page - blockFirstPage) * 4096`, a full
   * 64-bit number. The first record written names the block when `nameLength > 0` (u8 length + name),
   * every other record carries CONTINUE (0x20).
   *
   * @param blockFirstPage Page number of the block's first page (may lie before `firstPage`)
   * @param mirror Address of the mirror's copy of `firstPage`; DELTA also writes there
   * @param name Address of the block's name
   * @param counters Address of four u32 ({@linkcode ENCODE_COUNTER}) that are added to
   * @param out Address of two u32: the entry to continue from, and the bytes written
   * @returns Bytes written
   */
  encodePages(
    mode: number,
    table: number,
    from: number,
    count: number,
    blockFirstPage: number,
    firstPage: number,
    pages: number,
    mirror: number,
    name: number,
    nameLength: number,
    target: number,
    targetCapacity: number,
    counters: number,
    out: number,
  ): number;

  /**
   * Cut what a packet chardev of QEMU's sent into records (be32 length, and with vnet headers be32 vnet
   * header length, then that many bytes: `net/filter-mirror.c`), and enter what each frame is into a
   * frame table ({@linkcode FRAME}): Ethernet with up to two VLAN tags, IPv4 with options, IPv6 with
   * up to eight extension headers, TCP, UDP, ICMP. Stops at the first record it cannot take.
   *
   * @param at Address of the first record
   * @param end Address behind the last byte that has arrived
   * @param vnetHeader 1 when records carry a vnet header
   * @param seed Of the hash: what a stranger does not know cannot be made to collide
   * @param table Address of the first free entry
   * @param capacity Entries there is room for
   * @param out Address of two u32: the position reached, and the entries written
   * @returns one of {@linkcode FRAME_SCAN}
   */
  scanFrames(
    at: number,
    end: number,
    vnetHeader: number,
    seed: number,
    table: number,
    capacity: number,
    out: number,
  ): number;

  /**
   * Compare many pairs of ranges. An entry is four u32: address of the one, of the other, length, and
   * the result, which is written: 1 when both exist and are equal, 0 otherwise.
   *
   * @returns How many are not equal
   */
  comparePairs(pairs: number, count: number): number;

  /** 1 when all `length` bytes are zero. */
  isZero(address: number, length: number): number;
  /** 1 when both ranges are equal. */
  isEqual(a: number, b: number, length: number): number;
  /** Copy `length` bytes; the ranges may overlap. */
  copy(target: number, source: number, length: number): void;

  /** Set `count` bits from bit `first` on. `bits` is the bitmap's length in bits, here and below. */
  bitmapSet(bitmap: number, bits: number, first: number, count: number): void;
  /** Clear `count` bits from bit `first` on. */
  bitmapClear(bitmap: number, bits: number, first: number, count: number): void;
  /** 1 when the bit is set. */
  bitmapTest(bitmap: number, bits: number, bit: number): number;
  /** Number of set bits. */
  bitmapCount(bitmap: number, bits: number): number;
  /** target |= source. */
  bitmapUnion(target: number, source: number, bits: number): void;
  /** target &= ~source. */
  bitmapDifference(target: number, source: number, bits: number): void;
  /**
   * Find the next run of set bits at or behind `from`.
   *
   * @param out Address of two u32: the first bit of the run, and its length
   * @returns 1 when there is one
   */
  bitmapNextRun(bitmap: number, bits: number, from: number, out: number): number;

  /**
   * XBZRLE-encode the change from `before` to `after` (QEMU `migration/xbzrle.c`:
   * {uleb128 zero run, uleb128 non-zero run, bytes}*; the first zero run may be 0, a non-zero run
   * never is, no trailing zero run).
   *
   * @param length At most 16383, the longest run the format can say
   * @returns Bytes written; 0 when nothing changed; -1 when `capacity` is too small
   */
  xbzrleEncode(
    before: number,
    after: number,
    length: number,
    target: number,
    capacity: number,
  ): number;
  /**
   * Apply an XBZRLE body to `target`. Returns the bytes of `target` covered, or -1 when malformed:
   * the runs before the wrong one have been applied then.
   */
  xbzrleDecode(source: number, sourceLength: number, target: number, length: number): number;

  /**
   * Compress one LZ4 block (lz4_Block_format.md). Source up to 1 MiB. The same source gives the same
   * block in every kernel set.
   *
   * @returns Bytes written, or -1 when `capacity` is too small
   */
  lz4Compress(source: number, sourceLength: number, target: number, capacity: number): number;
  /** Decompress one LZ4 block. Returns the bytes written, or -1 when malformed or too large. */
  lz4Decompress(source: number, sourceLength: number, target: number, capacity: number): number;

  /** XXH64 (seed 0) of a range, written as 8 bytes little-endian at `out`. */
  xxh64(address: number, length: number, out: number): void;
}
