import { setTimeout as pause } from "node:timers/promises";
import type { DescService } from "@bufbuild/protobuf";
import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Status } from "../../gen/grpc/health/v1/health_pb.js";
import type { Readiness } from "./readiness.ts";

export interface HealthOptions {
  /** The services that callers may ask about by name. The empty name asks about the whole process. */
  readonly services: readonly DescService[];
  /** Answers at once and never throws: see createReadinessCheck. */
  readonly checkReadiness: () => Promise<Readiness>;
  /** Aborted when the process starts to drain. */
  readonly shutdownSignal: AbortSignal;
  /** How often a Watch looks for a change, in milliseconds; default 5000. */
  readonly watchIntervalMs?: number;
}

/**
 * Registers grpc.health.v1.Health. A service is SERVING while the process is ready, and NOT_SERVING otherwise and while
 * it drains. It is open to callers without a key, as orchestrators have none, so the router's key check and
 * interceptors do not apply.
 */
export function healthRoutes(options: HealthOptions): (router: ConnectRouter) => void {
  const { watchIntervalMs = 5_000, shutdownSignal } = options;
  const names = new Set(["", Health.typeName, ...options.services.map((service) => service.typeName)]);

  async function currentStatus(): Promise<Status> {
    const { ok } = await options.checkReadiness();
    return ok && !shutdownSignal.aborted ? Status.SERVING : Status.NOT_SERVING;
  }

  return (router) => {
    router.service(
      Health,
      {
        async check({ service }) {
          if (!names.has(service)) throw new ConnectError(`unknown service ${service}`, Code.NotFound);
          return { status: await currentStatus() };
        },
        async list() {
          const status = await currentStatus();
          return { statuses: Object.fromEntries([...names].map((name) => [name, { status }])) };
        },
        async *watch({ service }, { signal }) {
          let told: Status | undefined;
          while (!signal.aborted) {
            const status = names.has(service) ? await currentStatus() : Status.SERVICE_UNKNOWN;
            if (status !== told) yield { status };
            told = status;
            await pause(watchIntervalMs, undefined, { signal }).catch(() => {});
          }
          if (shutdownSignal.aborted && told === Status.SERVING) yield { status: Status.NOT_SERVING };
          throw ConnectError.from(signal.reason);
        },
      },
      { requestGate: () => {}, interceptors: [] },
    );
  };
}
