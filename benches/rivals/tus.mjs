// What the gateway is measured against in Node: @tus/server with its file store in the working directory. It neither
// hashes nor syncs. `node tus.mjs PORT`
import { FileStore } from "@tus/file-store";
import { Server } from "@tus/server";

new Server({ path: "/files", datastore: new FileStore({ directory: "." }) })
  .listen({ host: "127.0.0.1", port: Number(process.argv[2]) });
