/**
 * What the exit code of `colo` means.
 *
 * @module
 */

/** Exit codes, as `colo --help` lists them. */
export const EXIT = {
  OK: 0,
  /** It did not work; one sentence on standard error says why. */
  FAILED: 1,
  /** The command line or a config file is wrong; nothing was started. */
  USAGE: 2,
  /** The VM was lost on this host; a secondary that could take over was told to. */
  LOST: 3,
  /** Ended by Ctrl-C or SIGTERM, everything cleaned up. */
  INTERRUPTED: 130,
} as const;

/** The part of `--help` on exit codes. */
export const EXIT_CODES_HELP = `
Exit codes:
  0    done
  1    it did not work: one sentence on standard error says why
  2    the command line or a config file is wrong: nothing was started
  3    the VM was lost on this host: a standby that could take over was told to
  130  interrupted, everything cleaned up`;
