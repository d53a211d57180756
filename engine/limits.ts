/**
 * Every bound of the engine, with its reason. A length that comes from outside is compared with one
 * of these before anything is allocated for it.
 *
 * @module
 */

/** Bytes of one guest page: the engine serves x86, whose target page is 4 KiB. */
export const PAGE_BYTES = 4096;

/** QEMU writes an id with one length byte. */
export const BLOCK_NAME_BYTES_MAX = 255;

/** RAM blocks of one guest: a machine with every device QEMU has stays below a few hundred. */
export const BLOCK_COUNT_MAX = 4096;

/** Guest RAM of all blocks together: 1 TiB, where page numbers still fit 28 bits. */
export const GUEST_RAM_BYTES_MAX = 2 ** 40;

/** Device state of one checkpoint: 13 KB to 200 KB were seen; a VM with passed-through state has MBs. */
export const DEVICE_STATE_BYTES_MAX = 256 * 1024 * 1024;

/** The JSON description of the device state at the end of the initial stream: tens of KB were seen. */
export const VM_DESCRIPTION_BYTES_MAX = 16 * 1024 * 1024;

/** Machine names and section ids of the configuration section are short; QEMU bounds neither. */
export const CONFIGURATION_BYTES_MAX = 4096;

/** One frame of the link: a chunk is about 256 KiB, a JSON message far smaller. */
export const FRAME_PAYLOAD_BYTES_MAX = 1024 * 1024;

/** One reply of a QMP monitor: `query-qmp-schema` is about 250 KB, `qom-list` trees reach some MB. */
export const QMP_LINE_BYTES_MAX = 64 * 1024 * 1024;

/** Commands a monitor has not taken yet: a QEMU that hangs does not read, and they are some 100 bytes. */
export const QMP_UNSENT_BYTES_MAX = 1024 * 1024;

/** Events a reader may leave unread before the oldest are dropped: nobody is forced to read them. */
export const QMP_EVENTS_UNREAD_MAX = 4096;

/** Bytes of the link that may wait for the socket: some chunks, so that encoding and sending overlap. */
export const LINK_QUEUE_BYTES_MAX = 8 * 1024 * 1024;

/** Bytes of the link that a caller may pile up without waiting: only a bug does, and memory is finite. */
export const LINK_UNSENT_BYTES_MAX = 4 * LINK_QUEUE_BYTES_MAX;

/** Connections to a standby that are in no link yet: a primary opens four, and each holds some MiB. */
export const LINK_HALF_OPEN_MAX = 64;

/**
 * Bytes of whole checkpoints that a secondary holds before it loads them unasked, and before it leaves
 * a checkpoint unanswered, so that the primary takes no more: some hundred of a busy guest.
 */
export const REPLICA_HELD_BYTES_MAX = 256 * 1024 * 1024;

/** Checkpoints on their way that the secondary has not answered: each keeps its bytes there. */
export const IN_FLIGHT_MAX = 16;

/** Bytes of a seed that may wait for the secondary QEMU before no more are taken from the link. */
export const REPLICA_QUEUE_BYTES_MAX = 16 * 1024 * 1024;

/** What a stored checkpoint says about itself as JSON: 4096 RAM blocks with long names fit. */
export const STORE_METADATA_BYTES_MAX = 4 * 1024 * 1024;

/** The end of a stored checkpoint, with 8 bytes for each MiB of it: of a full one of 1 TiB. */
export const STORE_TRAILER_BYTES_MAX = 16 * 1024 * 1024;

/** One command to the control socket: names and numbers. */
export const CONTROL_OBJECT_BYTES_MAX = 64 * 1024;

/** Clients of a control socket at a time. */
export const CONTROL_CLIENTS_MAX = 16;

/** Device state of a held checkpoint, with its description. */
export const IMAGE_STATE_BYTES_MAX = DEVICE_STATE_BYTES_MAX + 16 * 1024 * 1024;

/** Bytes of a journal that are kept for the next one: what a busy guest writes in a period. */
export const JOURNAL_KEPT_BYTES_MAX = 64 * 1024 * 1024;

/** Bytes that may wait for the worker that keeps an image before no more are taken from the link. */
export const IMAGE_QUEUE_BYTES_MAX = 16 * 1024 * 1024;

/** Segments of {@linkcode PACKET_SEGMENT_BYTES} for frames of the primary: 32 MiB, 25 ms at 10 Gbit/s. */
export const PACKET_PRIMARY_SEGMENTS = 128;

/** Likewise for frames of the secondary, which are forgotten as soon as they are compared: 16 MiB. */
export const PACKET_SECONDARY_SEGMENTS = 64;

/** Likewise for datagrams that came in fragments, of either side. */
export const PACKET_REASSEMBLY_SEGMENTS = 8;

/** Where frames are read to: four of the longest ones, so that little is moved at a segment's end. */
export const PACKET_SEGMENT_BYTES = 256 * 1024;

/** Frames in a segment: as many as the smallest Ethernet frames (60 bytes, and 4 before them) fill. */
export const PACKET_SEGMENT_FRAMES = 4096;

/**
 * Segments of frames that have left, kept to compare retransmissions with: 4 MiB, the window of many
 * connections and little enough to stay in the processor's cache.
 */
export const PACKET_HISTORY_SEGMENTS = 16;

/** Frames of a history looked through for a retransmission; it is near the end of one. */
export const PACKET_HISTORY_STEPS_MAX = 4096;

/** Bytes of frames that wait for a secondary VM, a network card: 40 ms at 1 Gbit/s, then some are lost. */
export const INBOUND_QUEUE_BYTES_MAX = 4 * 1024 * 1024;

/** Bytes of frames that may wait for the link before more of them are lost: two of the queues above. */
export const PACKET_LINK_BYTES_MAX = 8 * 1024 * 1024;

/** Of what a secondary has said, bytes that may be said again: what a socket takes at once. */
export const SAID_BYTES_MAX = 128 * 1024;

/** And how old they may be: the guest's TCP says again by itself what is not answered for so long. */
export const SAID_MS_MAX = 200;

/** Connections tracked: 11 MiB. A guest with more open ones is compared in part, by checkpoints. */
export const PACKET_CONNECTIONS_MAX = 65536;

/** Connections without a frame for this long are forgotten; a later frame makes a new one. */
export const PACKET_CONNECTION_IDLE_MS = 10 * 60 * 1000;

/** Frames of the secondary that wait for the primary's, a connection. */
export const PACKET_SECONDARY_AHEAD_MAX = 4096;

/**
 * Once a connection has differed twice with nothing equal between, so many of the primary's frames with
 * data ask for a checkpoint without waiting for the secondary's; then it is looked again whether they differ.
 */
export const PACKET_DISTRUSTED_FRAMES = 64;

/** How far equal datagrams of a flow may be apart in the order of the other side's. */
export const PACKET_LOOKAHEAD_MAX = 32;

/** IP datagrams of a side that are in reassembly; Linux holds 4 MiB of them. */
export const PACKET_REASSEMBLIES_MAX = 64;

/** Fragments of an IP datagram: 64 KiB in pieces of 576 bytes are 119. */
export const PACKET_FRAGMENTS_MAX = 256;

/** One read or write over NBD: what QEMU sends and takes at the most. */
export const NBD_PAYLOAD_BYTES_MAX = 32 * 1024 * 1024;

/** One option of an NBD handshake, or a reply to one: QEMU's longest names are 4 KiB, some in one option. */
export const NBD_OPTION_BYTES_MAX = 64 * 1024;

/** Requests of one NBD connection that wait for their answer: QEMU has 16, Linux some hundred. */
export const NBD_REQUESTS_MAX = 1024;

/** Disks of a VM that are replicated: each has a number of one byte, and a PC has no more slots. */
export const DISKS_MAX = 28;

/** Bytes of writes that wait for a secondary to load: two of the largest, and half a second of a disk. */
export const DISK_GATE_BYTES_MAX = 64 * 1024 * 1024;

/** Bytes of writes on a secondary whose checkpoint is not committed yet; they lie in files. */
export const DISK_LOG_BYTES_MAX = 1024 * 1024 * 1024;

/** What a write counts there at least, so that the number of small ones is bounded as well. */
export const DISK_LOG_WRITE_BYTES_MIN = 4096;

/** Id of an engine at an arbiter: a host name and something random. */
export const HOLDER_BYTES_MAX = 255;

/** One answer of etcd: a record, or the list of {@linkcode STANDBYS_MAX} standbys, in base64. */
export const ETCD_ANSWER_BYTES_MAX = 1024 * 1024;

/** Standbys of a VM that are looked at: more than a few are a mistake. */
export const STANDBYS_MAX = 256;

/** Complaint of a fence command that is kept: its last line is shown. */
export const FENCE_COMPLAINT_BYTES_MAX = 16 * 1024;
