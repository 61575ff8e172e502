import { QueueService } from "../gen/scheduling/v1/queue_service_pb.js";
import type { GrpcClient } from "./clients/grpc.ts";

/** How many calls are in flight. */
const WIDTH = 16;

/** Creates so many queues and resolves with their names. */
export async function createQueues(grpc: GrpcClient, count: number): Promise<string[]> {
  const names = Array.from({ length: count }, (_, index) => `many-${index}`);
  const left = names.values();
  const loop = async (): Promise<void> => {
    for (const queue of left) await grpc.unary(QueueService.method.createQueue, { queue });
  };
  await Promise.all(Array.from({ length: WIDTH }, loop));
  return names;
}
