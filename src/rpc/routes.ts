import type { ConnectRouter } from "@connectrpc/connect";
import { Health } from "../../gen/grpc/health/v1/health_pb.js";
import { ClockService } from "../../gen/scheduling/v1/clock_service_pb.js";
import { CronService } from "../../gen/scheduling/v1/cron_service_pb.js";
import { DeliveryService } from "../../gen/scheduling/v1/delivery_service_pb.js";
import { EndpointService } from "../../gen/scheduling/v1/endpoint_service_pb.js";
import { EventService } from "../../gen/scheduling/v1/event_service_pb.js";
import { PingService } from "../../gen/scheduling/v1/ping_service_pb.js";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { JwksService, SigningService } from "../../gen/scheduling/v1/signing_service_pb.js";
import { TaskService } from "../../gen/scheduling/v1/task_service_pb.js";
import { clockService } from "./clock-service.ts";
import type { AppContext } from "./context.ts";
import { cronService } from "./cron-service.ts";
import { deliveryService } from "./delivery-service.ts";
import { endpointService } from "./endpoint-service.ts";
import { eventService } from "./event-service.ts";
import { jwksService } from "./jwks-service.ts";
import { pingService } from "./ping-service.ts";
import { queueService } from "./queue-service.ts";
import { signingService } from "./signing-service.ts";
import { taskService } from "./task-service.ts";

/** The services of the contract: those whose health can be asked about. */
export const SERVICES = [
  CronService,
  QueueService,
  TaskService,
  DeliveryService,
  EndpointService,
  EventService,
  SigningService,
  JwksService,
  ClockService,
  PingService,
] as const;

/** What reflection shows, beside itself. */
export const REFLECTED_SERVICES = [...SERVICES, Health] as const;

/**
 * Services that anybody may call. Orchestrators that ask about health have no key, nor have receivers that ask for public
 * keys; pings carry a token of their own. Reflection shows the contract, which
 * is published with the source and says nothing of any project, so it is open in production too: a tool that explores
 * it needs no secret.
 */
export const OPEN_SERVICES: ReadonlySet<string> = new Set([
  "grpc.health.v1.Health",
  "grpc.reflection.v1.ServerReflection",
  "grpc.reflection.v1alpha.ServerReflection",
  JwksService.typeName,
  PingService.typeName,
]);

/** Registers the handlers of the contract. They are made once, however many routers they are registered with. */
export function routes(app: AppContext): (router: ConnectRouter) => void {
  const cron = cronService(app);
  const queue = queueService(app);
  const task = taskService(app);
  const delivery = deliveryService(app);
  const endpoint = endpointService(app);
  const event = eventService(app);
  const signing = signingService(app);
  const jwks = jwksService(app);
  const clock = clockService(app);
  const ping = pingService(app);
  return (router) => {
    router.service(CronService, cron);
    router.service(QueueService, queue);
    router.service(TaskService, task);
    router.service(DeliveryService, delivery);
    router.service(EndpointService, endpoint);
    router.service(EventService, event);
    router.service(SigningService, signing);
    router.service(JwksService, jwks);
    router.service(ClockService, clock);
    router.service(PingService, ping);
  };
}
