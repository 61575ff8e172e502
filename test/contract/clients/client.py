"""A client of Carillon with grpcio, as a Python user would write one, for the test that starts it.

    client.py STUBS TARGET KEY

STUBS is the folder of the generated stubs, TARGET is host:port, KEY may be empty. Carries out the commands on its
standard input, one JSON object a line, and answers each by one line. Bytes are in base64.
"""

import base64
import json
import sys

sys.path.insert(0, sys.argv[1])

import google

# Debian's google package is a plain one, so it has to be told where the generated google.api and google.rpc are.
google.__path__.append(sys.argv[1] + "/google")

import grpc
from google.rpc import error_details_pb2, status_pb2
from scheduling.v1 import cron_service_pb2, cron_service_pb2_grpc
from scheduling.v1 import queue_service_pb2, queue_service_pb2_grpc
from scheduling.v1 import task_service_pb2, task_service_pb2_grpc

TIMEOUT_SECONDS = 20


class Client:
    def __init__(self, target, key):
        channel = grpc.insecure_channel(target)
        self.metadata = [("authorization", "Bearer " + key)] if key else []
        self.queues = queue_service_pb2_grpc.QueueServiceStub(channel)
        self.crons = cron_service_pb2_grpc.CronServiceStub(channel)
        self.tasks = task_service_pb2_grpc.TaskServiceStub(channel)
        self.stream = None

    def call(self, method, request):
        return method(request, metadata=self.metadata, timeout=TIMEOUT_SECONDS)

    def publish(self, queue, payload, contentType):
        request = queue_service_pb2.PublishRequest(
            queue=queue, payload=base64.b64decode(payload), content_type=contentType
        )
        return self.call(self.queues.Publish, request).message_id

    def consume(self, queue):
        answer = self.call(self.queues.Consume, queue_service_pb2.ConsumeRequest(queue=queue))
        return messages(answer)

    def ack(self, queue, messageId, receipt):
        request = queue_service_pb2.AckRequest(queue=queue, message_id=messageId, receipt=receipt)
        return self.call(self.queues.Ack, request).acked

    def streamOpen(self, queue):
        request = queue_service_pb2.ConsumeStreamRequest(queue=queue)
        self.stream = self.call(self.queues.ConsumeStream, request)

    def streamNext(self):
        try:
            return messages(next(self.stream))
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.CANCELLED:
                return None
            raise

    def streamCancel(self):
        self.stream.cancel()

    def stats(self, queue):
        stats = self.call(self.queues.GetQueueStats, queue_service_pb2.GetQueueStatsRequest(queue=queue)).stats
        return {"available": stats.available, "inFlight": stats.in_flight}

    def createCronJob(self, cronExpr, post):
        request = cron_service_pb2.CreateCronJobRequest(cron_expr=cronExpr, max_runs=1, **fields(post))
        return self.call(self.crons.CreateCronJob, request).cron_job.cron_id

    def scheduleTask(self, runAtMs, post):
        request = task_service_pb2.ScheduleTaskRequest(**fields(post))
        request.run_at.FromMilliseconds(runAtMs)
        return self.call(self.tasks.ScheduleTask, request).task.task_id


def messages(answer):
    return [
        {
            "messageId": message.message_id,
            "payload": base64.b64encode(message.payload).decode(),
            "receipt": message.receipt,
        }
        for message in answer.messages
    ]


def fields(post):
    return {
        "url": post["url"],
        "payload": base64.b64decode(post["payload"]),
        "content_type": post["contentType"],
    }


def refusal(error):
    reason = None
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    reason = info.reason
    return {"code": error.code().name, "reason": reason, "message": error.details()}


def main():
    client = Client(sys.argv[2], sys.argv[3])
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("name")
        try:
            answer = {"result": getattr(client, name)(**command)}
        except grpc.RpcError as error:
            answer = {"refused": refusal(error)}
        except Exception as error:
            answer = {"failed": repr(error)}
        print(json.dumps(answer), flush=True)


main()
