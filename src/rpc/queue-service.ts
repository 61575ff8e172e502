import type { ServiceImpl } from "@connectrpc/connect";
import type { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { consumeStream } from "./consume-stream.ts";
import type { AppContext } from "./context.ts";
import { deadLetterHandlers } from "./dead-letter-handlers.ts";
import { messageHandlers } from "./message-handlers.ts";
import { pushHandlers } from "./push-handlers.ts";
import { queueHandlers } from "./queue-handlers.ts";

export function queueService(app: AppContext): ServiceImpl<typeof QueueService> {
  return {
    ...queueHandlers(app),
    ...messageHandlers(app),
    ...consumeStream(app),
    ...deadLetterHandlers(app),
    ...pushHandlers(app),
  };
}
