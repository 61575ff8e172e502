import type { ConnectRouter } from "@connectrpc/connect";
import { Health } from "../../gen/grpc/health/v1/health_pb.js";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { TaskService } from "../../gen/scheduling/v1/task_service_pb.js";
import type { AppContext } from "./context.ts";
import { cronService } from "./cron-service.ts";
import { queueService } from "./queue-service.ts";
import { taskService } from "./task-service.ts";

/** The services of the contract: those whose health can be asked about. */
export const SERVICES = [CronService, QueueService, TaskService] as const;

/** What reflection shows, beside itself. */
export const REFLECTED_SERVICES = [...SERVICES, Health] as const;

/**
 * Services that anybody may call. Orchestrators that ask about health have no key. Reflection shows the contract, which
 * is published with the source and says nothing of any project, so it is open in production too: a tool that explores
 * it needs no secret.
 */
export const OPEN_SERVICES: ReadonlySet<string> = new Set([
  "grpc.health.v1.Health",
  "grpc.reflection.v1.ServerReflection",
  "grpc.reflection.v1alpha.ServerReflection",
]);

/** Registers the handlers of the contract. They are made once, however many routers they are registered with. */
export function routes(app: AppContext): (router: ConnectRouter) => void {
  const cron = cronService(app);
  const queue = queueService(app);
  const task = taskService(app);
  return (router) => {
    router.service(CronService, cron);
    router.service(QueueService, queue);
    router.service(TaskService, task);
  };
}
