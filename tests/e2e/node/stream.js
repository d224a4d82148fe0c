// An application as its authors wrote it: of the proxy it knows what is in its environment.
import OpenAI from "openai";
import { EnvHttpProxyAgent, fetch, setGlobalDispatcher } from "undici";

setGlobalDispatcher(new EnvHttpProxyAgent());
const client = new OpenAI({ apiKey: "none-of-its-own", fetch });
const stream = await client.chat.completions.create({
  model: "gpt-4o",
  messages: [{ role: "user", content: "hi" }],
  stream: true,
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
}
