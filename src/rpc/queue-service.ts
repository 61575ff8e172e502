import type { ServiceImpl } from "@connectrpc/connect";
import type { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { consumeHandlers } from "./consume-handlers.ts";
import { consumeSession } from "./consume-session.ts";
import { consumeStream } from "./consume-stream.ts";
import type { AppContext } from "./context.ts";
import { deadLetterHandlers } from "./dead-letter-handlers.ts";
import { groupHandlers } from "./group-handlers.ts";
import { historyHandlers } from "./history-handlers.ts";
import { publishHandlers } from "./publish-handlers.ts";
import { pushHandlers } from "./push-handlers.ts";
import { pushTestHandler } from "./push-test-handler.ts";
import { queueHandlers } from "./queue-handlers.ts";
import { redriveHandlers } from "./redrive-handlers.ts";
import { settleHandlers } from "./settle-handlers.ts";

export function queueService(app: AppContext): ServiceImpl<typeof QueueService> {
  return {
    ...queueHandlers(app),
    ...historyHandlers(app),
    ...publishHandlers(app),
    ...consumeHandlers(app),
    ...consumeStream(app),
    ...consumeSession(app),
    ...settleHandlers(app),
    ...deadLetterHandlers(app),
    ...groupHandlers(app),
    ...redriveHandlers(app),
    ...pushHandlers(app),
    ...pushTestHandler(app),
  };
}
