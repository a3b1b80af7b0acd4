// Submit a check of an object in S3: node submit.mjs BUCKET KEY CHECK_ID (DNF_REDIS_URL names the broker).
import { randomUUID } from "node:crypto";
import { connect } from "./redis.mjs";

const [bucket, key, check_id] = process.argv.slice(2);
const check = { check_id, bucket, key, submitted_at: new Date().toISOString() };
const entry = {
  body: Buffer.from(JSON.stringify([[check], {}, {}])).toString("base64"),
  "content-type": "application/json",
  "content-encoding": "utf-8",
  headers: { task: "check_image", id: randomUUID() },
  properties: { delivery_tag: randomUUID(), body_encoding: "base64" },
};
const redis = await connect(process.env.DNF_REDIS_URL);
await redis.send("LPUSH", "image-checks", JSON.stringify(entry));
redis.close();
console.log(check_id);
