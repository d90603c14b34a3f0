// Reads one playlist per line, each a JSON string, and answers each with a line: null, or why hls-parser's strict mode refuses it.
import { createInterface } from "node:readline";
import HLS from "hls-parser";

HLS.setOptions({ strictMode: true });

function refusal(text) {
  try {
    // It takes titles for bytes that are still to be decoded as UTF-8.
    HLS.parse(Buffer.from(text, "utf8").toString("latin1"));
    return null;
  } catch (error) {
    return String(error.message);
  }
}

for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  process.stdout.write(JSON.stringify(refusal(JSON.parse(line))) + "\n");
}
