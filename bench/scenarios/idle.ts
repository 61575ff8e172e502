import { setTimeout as delay } from "node:timers/promises";
import { QueueService } from "../../gen/scheduling/v1/queue_service_pb.js";
import { GrpcClient } from "../clients/grpc.ts";
import { createQueues } from "../create-queues.ts";
import type { Scenario } from "../scope.ts";
import { KEY } from "../servers/carillon.ts";
import { statementCounter } from "../statements.ts";
import { figures } from "../verdict.ts";

const STREAMS_PER_CONNECTION = 50;
/** Until what starting the streams caused has passed, in milliseconds. */
const SETTLE_MS = 5_000;
/** A shorter look sees too few of the things that happen once in a while, in seconds. */
const SHORTEST_S = 15;

/** What waiting costs: streams that get nothing, queues that nobody uses. */
export const idle: Scenario = {
  name: "idle",
  about: "processor time and statements while streams and queues are idle",
  async run(scope) {
    const { queues, streams } = scope.settings;
    const seconds = Math.max(SHORTEST_S, scope.settings.seconds);
    const { node, database } = await scope.startCarillon();
    using grpc = new GrpcClient(node.port, KEY, Math.ceil(streams / STREAMS_PER_CONNECTION));
    const names = await createQueues(grpc, queues);
    const openStreams = names.slice(0, streams).map((queue) => {
      const opened = Promise.withResolvers<void>();
      // The first answer, which is empty, says that the stream is open.
      grpc.stream(QueueService.method.consumeStream, { queue }, () => opened.resolve(), opened.reject);
      return opened.promise;
    });
    await Promise.all(openStreams);
    const statements = await statementCounter(database);
    await delay(SETTLE_MS);
    const name = `${streams} idle streams, ${queues.toLocaleString("en-US")} idle queues`;
    const rounds = await scope.alternate([
      {
        name,
        async measure() {
          const [from, cpuFrom, startedAt] = [await statements(), await node.processorSeconds(), performance.now()];
          await delay(seconds * 1_000);
          const passed = (performance.now() - startedAt) / 1_000;
          const [to, cpuTo] = [await statements(), await node.processorSeconds()];
          return { core_percent: ((cpuTo - cpuFrom) / passed) * 100, statements_per_s: (to - from) / passed };
        },
      },
    ]);
    return {
      rounds,
      verdicts: [
        {
          goal: 9,
          what: `${name}: the node's processor time`,
          unit: "% of a core",
          bound: { atMost: 2 },
          values: figures(rounds, name, "core_percent"),
        },
        {
          goal: 9,
          what: "the same: statements",
          unit: "/s",
          bound: { atMost: 5 },
          values: figures(rounds, name, "statements_per_s"),
        },
      ],
    };
  },
};
