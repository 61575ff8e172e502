/**
 * What an attempt failed of before an answer arrived. `blocked_address`: the guard refused to dial. `dns_failed`: the name
 * is unknown; outside of `webhook/`, also that the guard refused its addresses, which nobody can tell apart. `request_invalid`:
 * what was stored cannot be sent. `cancelled`: this side gave up, so that nothing is known about the receiver.
 */
export type AttemptError =
  | "blocked_address"
  | "dns_failed"
  | "connect_failed"
  | "tls_failed"
  | "timeout"
  | "reset"
  | "response_invalid"
  | "request_invalid"
  | "cancelled";

/**
 * A failed attempt inside `webhook/`; `post` turns it into an outcome.
 * `detail` is shown to the tenant, so it never carries an address, a banner or an operating system's error text:
 * records of attempts would be a port scanner otherwise.
 */
export class AttemptFailure extends Error {
  override readonly name = "AttemptFailure";
  readonly error: AttemptError;
  readonly detail: string;

  constructor(error: AttemptError, detail: string, options?: ErrorOptions) {
    super(detail, options);
    this.error = error;
    this.detail = detail;
  }
}
