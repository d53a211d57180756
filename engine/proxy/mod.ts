/**
 * The packet proxy: which frames of the primary VM may leave, and when.
 *
 * @module
 */

export { type Flow, type FlowRule, parseAddress } from "./flow_rules.ts";
export { FrameInput } from "./frame_input.ts";
export { InboundGate } from "./inbound_gate.ts";
export {
  type CheckpointReason,
  type CheckpointRequest,
  type OutboundMode,
  OutboundProxy,
  type OutboundProxyOptions,
  type OutboundStatistics,
} from "./outbound_proxy.ts";
export { Outbox } from "./outbox.ts";
