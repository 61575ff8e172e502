/**
 * The curl examples of the documented API, character for character, by capability.
 */
export const EXAMPLES = {
  "scheduling.cron.create": String.raw`curl -X POST https://api.infrai.cc/v1/scheduling/cron/create \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"cron_expr": "0 9 * * 1", "task_type": "http_url", "task_url": "https://api.acme.com/weekly"}'`,

  "scheduling.cron.list": String.raw`curl -X GET https://api.infrai.cc/v1/scheduling/cron/list \
  -H "Authorization: Bearer $INFRAI_API_KEY"`,

  "scheduling.queue.publish": String.raw`curl -X POST https://api.infrai.cc/v1/scheduling/queue/publish \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"queue": "orders", "payload": {"order_id": "o_123"}, "priority": 5}'`,

  "scheduling.cron.get": String.raw`curl -X GET https://api.infrai.cc/v1/scheduling/cron/get/ID \
  -H "Authorization: Bearer $INFRAI_API_KEY"`,

  "scheduling.cron.update": String.raw`curl -X PATCH https://api.infrai.cc/v1/scheduling/cron/update/ID \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{}'`,

  "scheduling.cron.delete": String.raw`curl -X DELETE https://api.infrai.cc/v1/scheduling/cron/delete/ID \
  -H "Authorization: Bearer $INFRAI_API_KEY"`,

  "scheduling.cron.pause": String.raw`curl -X POST https://api.infrai.cc/v1/scheduling/cron/pause/ID \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"cron_id": "..."}'`,

  "scheduling.cron.resume": String.raw`curl -X POST https://api.infrai.cc/v1/scheduling/cron/resume/ID \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"cron_id": "..."}'`,

  "scheduling.cron.trigger": String.raw`curl -X POST https://api.infrai.cc/v1/scheduling/cron/trigger/ID \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"job_id": "cron_01HX..."}'`,

  "scheduling.cron.runs.get": String.raw`curl -X GET https://api.infrai.cc/v1/scheduling/cron/runs/get/ID/RUN_ID \
  -H "Authorization: Bearer $INFRAI_API_KEY"`,

  "scheduling.cron.retention.get": String.raw`curl -X GET https://api.infrai.cc/v1/scheduling/cron/retention/get/ID \
  -H "Authorization: Bearer $INFRAI_API_KEY"`,

  "scheduling.cron.retention.set": String.raw`curl -X PUT https://api.infrai.cc/v1/scheduling/cron/retention/set/ID \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"retention_days": 0}'`,

  "scheduling.task.schedule": String.raw`curl -X POST https://api.infrai.cc/v1/scheduling/task/schedule \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"task": "...", "run_at": "..."}'`,

  "scheduling.run.list": String.raw`curl -X GET https://api.infrai.cc/v1/scheduling/run/list \
  -H "Authorization: Bearer $INFRAI_API_KEY"`,

  "scheduling.queue.create": String.raw`curl -X POST https://api.infrai.cc/v1/scheduling/queue/create \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"name": "..."}'`,

  "scheduling.queue.get": String.raw`curl -X GET https://api.infrai.cc/v1/scheduling/queue/get/QUEUE \
  -H "Authorization: Bearer $INFRAI_API_KEY"`,

  "scheduling.queue.list": String.raw`curl -X GET https://api.infrai.cc/v1/scheduling/queue/list \
  -H "Authorization: Bearer $INFRAI_API_KEY"`,

  "scheduling.queue.update": String.raw`curl -X PATCH https://api.infrai.cc/v1/scheduling/queue/update/QUEUE \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{}'`,

  "scheduling.queue.delete": String.raw`curl -X DELETE https://api.infrai.cc/v1/scheduling/queue/delete/QUEUE \
  -H "Authorization: Bearer $INFRAI_API_KEY"`,

  "scheduling.queue.purge": String.raw`curl -X POST https://api.infrai.cc/v1/scheduling/queue/purge/QUEUE \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"queue": "..."}'`,

  "scheduling.queue.stats": String.raw`curl -X GET https://api.infrai.cc/v1/scheduling/queue/stats/QUEUE \
  -H "Authorization: Bearer $INFRAI_API_KEY"`,

  "scheduling.queue.publish_batch": String.raw`curl -X POST https://api.infrai.cc/v1/scheduling/queue/publish_batch \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"queue": "...", "messages": []}'`,

  "scheduling.queue.consume": String.raw`curl -X POST https://api.infrai.cc/v1/scheduling/queue/consume \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"queue": "..."}'`,

  "scheduling.queue.ack": String.raw`curl -X POST https://api.infrai.cc/v1/scheduling/queue/ack \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"queue": "...", "message_id": "..."}'`,

  "scheduling.queue.nack": String.raw`curl -X POST https://api.infrai.cc/v1/scheduling/queue/nack \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"queue": "...", "message_id": "..."}'`,

  "scheduling.queue.dlq.list": String.raw`curl -X GET https://api.infrai.cc/v1/scheduling/queue/dlq/list/QUEUE \
  -H "Authorization: Bearer $INFRAI_API_KEY"`,

  "scheduling.queue.dlq.redrive": String.raw`curl -X POST https://api.infrai.cc/v1/scheduling/queue/dlq/redrive/QUEUE \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"queue": "orders", "max_messages": 100}'`,

  "scheduling.queue.push_subscribe": String.raw`curl -X POST https://api.infrai.cc/v1/scheduling/queue/push_subscribe/QUEUE \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"queue": "orders", "forward_to": "https://api.acme.com/order-handler"}'`,
} as const;

/** The calls of the documented end-to-end example, character for character. */
export const END_TO_END = String.raw`# 2) scheduling.cron.create
curl -X POST https://api.infrai.cc/v1/scheduling/cron/create \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"cron_expr": "0 9 * * 1", "task_type": "http_url", "task_url": "https://api.acme.com/weekly"}'

# 3) scheduling.cron.list
curl -X GET https://api.infrai.cc/v1/scheduling/cron/list \
  -H "Authorization: Bearer $INFRAI_API_KEY"

# 4) scheduling.queue.publish
curl -X POST https://api.infrai.cc/v1/scheduling/queue/publish \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"queue": "orders", "payload": {"order_id": "o_123"}, "priority": 5}'

# 5) scheduling.cron.get
curl -X GET https://api.infrai.cc/v1/scheduling/cron/get/ID \
  -H "Authorization: Bearer $INFRAI_API_KEY"

# 6) scheduling.cron.update
curl -X PATCH https://api.infrai.cc/v1/scheduling/cron/update/ID \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{}'

# 7) scheduling.cron.delete
curl -X DELETE https://api.infrai.cc/v1/scheduling/cron/delete/ID \
  -H "Authorization: Bearer $INFRAI_API_KEY"

# 8) scheduling.cron.pause
curl -X POST https://api.infrai.cc/v1/scheduling/cron/pause/ID \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"cron_id": "..."}'

# 9) scheduling.cron.resume
curl -X POST https://api.infrai.cc/v1/scheduling/cron/resume/ID \
  -H "Authorization: Bearer $INFRAI_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"cron_id": "..."}'`;
