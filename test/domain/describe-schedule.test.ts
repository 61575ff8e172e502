import { expect, test } from "vitest";
import { describeSchedule } from "../../src/domain/describe-schedule.ts";
import { parseSchedule } from "../../src/domain/schedule.ts";

test.each([
  ["0 9 * * 1-5", "at 09:00 on Monday to Friday"],
  ["0 9 * * SAT,SUN", "at 09:00 on Saturday and Sunday"],
  ["*/15 * * * *", "every 15 minutes"],
  ["5/20 * * * *", "every 20 minutes from minute 5 on"],
  ["0 * * * *", "every hour"],
  ["7 * * * *", "at minute 7 of every hour"],
  ["1,2,3,50 * * * *", "at minutes 1 to 3 and 50 of every hour"],
  ["*/90 * * * *", "every hour"],
  ["0 */2 * * *", "at minute 0 of each 2nd hour"],
  ["*/10 9-17 * * MON,WED", "every 10 minutes of hours 9 to 17 on Monday and Wednesday"],
  ["*/20 2 * * *", "at 02:00, 02:20 and 02:40"],
  ["* * * * * *", "every second"],
  ["*/5 * * * * *", "every 5 seconds"],
  ["10 */7 3-6 * * *", "at second 10 of minutes 0, 7, 14, 21, 28, 35, 42, 49 and 56 of hours 3 to 6"],
  ["30 0 12 ? * 1#2 2028-2030", "at 12:00:30 on the second Monday in 2028 to 2030"],
  ["0 0 13 * FRI", "at 00:00 on day 13 of the month, or on Friday"],
  ["0 0 L * *", "at 00:00 on the last day of the month"],
  ["0 0 L-3 JAN-MAR *", "at 00:00 on the day 3 days before the last of the month in January to March"],
  [
    "0 0 LW,15W * 5L",
    "at 00:00 on the Monday to Friday nearest to day 15 and the last Monday to Friday of the month, or on the last Friday",
  ],
  ["H H * * *", "at 01:47"],
  ["@every 1h30m", "every 1 hour 30 minutes"],
  ["@every 1h/15m", "every hour, 15 minutes after each multiple of it"],
  ["@yearly", "at 00:00 on day 1 of the month in January"],
])("%s: %s", (expression, words) => {
  expect(describeSchedule(parseSchedule({ expression, timezone: "", seed: "cron_1" }))).toBe(words);
});
