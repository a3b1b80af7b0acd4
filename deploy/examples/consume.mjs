// Consume events as a member of a group: node consume.mjs GROUP COUNT (DNF_REDIS_URL names the broker).
import { hostname } from "node:os";
import { connect } from "./redis.mjs";

const [group, count] = process.argv.slice(2);
const redis = await connect(process.env.DNF_REDIS_URL);
await redis.send("XGROUP", "CREATE", "verdicts", group, "0", "MKSTREAM").catch((error) => {
  if (!error.message.startsWith("BUSYGROUP")) throw error;
});
for (let left = Number(count); left > 0; ) {
  const reply = await redis.send(
    "XREADGROUP", "GROUP", group, hostname(), "COUNT", left, "BLOCK", 5000, "STREAMS", "verdicts", ">",
  );
  for (const [id, [, event]] of reply?.[0][1] ?? []) {
    console.log(event.toString());
    await redis.send("XACK", "verdicts", group, id); // until then another member of the group may claim it
    left--;
  }
}
redis.close();
