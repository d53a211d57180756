/**
 * What the simulated host gets wrong on purpose, so that the checkers can be checked.
 *
 * @module
 */

/** One thing each; all false: as it must be. */
export interface Rules {
  /** What the guest says leaves when its checkpoint is taken, held by a secondary or not. */
  readonly releasesBeforeCommit: boolean;
  /** Whoever wants to run the VM alone is let, and nobody is asked. */
  readonly skipsClaim: boolean;
  /** The seed alone lets a secondary take over when it loses the link. */
  readonly trustsSeed: boolean;
  /** A side that is told that the VM is another's goes on. */
  readonly ignoresStale: boolean;
  /** A VM that runs alone goes on when its lease ends. */
  readonly ignoresLease: boolean;
  /** A secondary takes over from whatever has arrived, whole or not. */
  readonly loadsPartial: boolean;
  /** A secondary that is let take over does not. */
  readonly neverTakesOver: boolean;
  /** Each phase is reported as the one that protects. */
  readonly reportsProtected: boolean;
  /** A primary that sees its QEMU end keeps that to itself. */
  readonly diesUnheard: boolean;
  /** No secondary is ever looked for. */
  readonly neverReconnects: boolean;
  /** A link may be made in a generation that is being claimed anew. */
  readonly sharesWhileClaiming: boolean;
  /** A claim goes on though its copy is gone, in whatever generation is shared by then. */
  readonly claimsForOthers: boolean;
  /** A primary claims without a look at whether its VM lives. */
  readonly claimsForDead: boolean;
  /** Whoever was to guard the network for a link that is gone opens it, be there another link by then. */
  readonly opensForOthers: boolean;
  /** A VM that was paused for its lease stays so, when another looks after it or the lease is a new one. */
  readonly forgetsPause: boolean;
  /** A host without a third party takes silence for death. */
  readonly trustsSilence: boolean;
  /** A VM goes on when its engine is back, though its host may be about to be switched off. */
  readonly adoptsUnasked: boolean;
  /** What was sent of a seed that broke off is not sent again to a secondary that lacks it. */
  readonly forgetsSent: boolean;
  /** An engine that stood still lets out what the secondary has vouched for before that. */
  readonly believesOldWords: boolean;
}

export const SOUND: Rules = {
  releasesBeforeCommit: false,
  skipsClaim: false,
  trustsSeed: false,
  ignoresStale: false,
  ignoresLease: false,
  loadsPartial: false,
  neverTakesOver: false,
  reportsProtected: false,
  diesUnheard: false,
  neverReconnects: false,
  sharesWhileClaiming: false,
  claimsForOthers: false,
  claimsForDead: false,
  opensForOthers: false,
  forgetsPause: false,
  trustsSilence: false,
  adoptsUnasked: false,
  forgetsSent: false,
  believesOldWords: false,
};
