// The official Supabase Storage client against a storage server: node storage-js.mjs URL SERVICE_KEY ANON_KEY EXPIRED_KEY
// Exits with 1 and says what differs at the first result that is not the documented one.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { Readable } from "node:stream";
import { StorageClient } from "@supabase/storage-js";

const [url, serviceKey, anonKey, expiredKey] = process.argv.slice(2);
const client = (key) => new StorageClient(`${url}/storage/v1`, { apikey: key, Authorization: `Bearer ${key}` });
const storage = client(serviceKey);

/** The data of a call that must succeed. */
async function ok(call) {
  const { data, error } = await call;
  assert.equal(error, null, error?.message);
  return data;
}

/** The error of a call that must fail with this status inside the body and this code. */
async function refused(call, statusCode, message) {
  const { data, error } = await call;
  assert.equal(data, null);
  assert.equal(String(error.statusCode), statusCode, error.message);
  assert.match(error.message, message);
}

const md5 = (bytes) => createHash("md5").update(bytes).digest("hex");
const bytesOf = async (blob) => Buffer.from(await blob.arrayBuffer());

// Buckets
await ok(storage.createBucket("js-bucket", { public: false, fileSizeLimit: "1MB", allowedMimeTypes: ["video/webm"] }));
await refused(storage.createBucket("js-bucket"), "409", /already exists/);
const bucket = await ok(storage.getBucket("js-bucket"));
assert.equal(bucket.public, false);
assert.equal(bucket.file_size_limit, 1_000_000);
assert.deepEqual(bucket.allowed_mime_types, ["video/webm"]);
await refused(storage.getBucket("nobody"), "404", /Bucket not found/);
assert.ok((await ok(storage.listBuckets())).some((one) => one.id === "interview-recordings" && one.public));
await ok(storage.updateBucket("js-bucket", { public: true }));
assert.equal((await ok(storage.getBucket("js-bucket"))).public, true);

// Uploads in every form the client knows
const files = storage.from("interview-recordings");
const content = Buffer.from("0123456789".repeat(1000));
const first = await ok(files.upload("js/buffer.webm", content, { contentType: "video/webm", metadata: { take: 1 } }));
assert.equal(first.path, "js/buffer.webm");
assert.equal(first.fullPath, "interview-recordings/js/buffer.webm");
await refused(files.upload("js/buffer.webm", content, { contentType: "video/webm" }), "409", /already exists/);
const again = await ok(files.upload("js/buffer.webm", content, { contentType: "video/webm", upsert: true, metadata: { take: 2 } }));
assert.equal(again.id, first.id);
await ok(files.upload("js/blob.webm", new Blob([content], { type: "video/webm" }), { metadata: { take: 3 } }));
await ok(files.upload("js/stream.webm", Readable.toWeb(Readable.from([content, content])), { contentType: "video/webm", duplex: "half" }));
await ok(files.update("js/buffer.webm", content, { contentType: "video/webm", cacheControl: "60" }));
await refused(storage.from("js-bucket").upload("big.webm", Buffer.alloc(2_000_000), { contentType: "video/webm" }), "413", /maximum allowed size/);
await refused(storage.from("js-bucket").upload("x.png", content, { contentType: "image/png" }), "415", /image\/png is not supported/);
await refused(files.upload("js/é.webm", content), "400", /Invalid key/);
await refused(storage.from("nobody").upload("x.webm", content), "404", /Bucket not found/);

// Looking at them
const info = await ok(files.info("js/blob.webm"));
assert.equal(info.size, content.length);
assert.equal(info.contentType, "video/webm");
assert.equal(info.etag, `"${md5(content)}"`);
assert.deepEqual(info.metadata, { take: 3 });
await refused(files.info("js/none.webm"), "404", /Object not found/);
assert.equal((await files.exists("js/buffer.webm")).data, true);
assert.equal((await files.exists("js/none.webm")).data, false);
assert.deepEqual(await bytesOf(await ok(files.download("js/buffer.webm"))), content);
assert.equal((await bytesOf(await ok(files.download("js/stream.webm")))).length, 2 * content.length);
assert.notEqual((await files.download("js/none.webm")).error, null);
const open = await fetch(files.getPublicUrl("js/buffer.webm").data.publicUrl, { headers: { Range: "bytes=0-3" } });
assert.equal(open.status, 206);
assert.equal(await open.text(), "0123");

// Lists
const listed = await ok(files.list("js", { limit: 2, sortBy: { column: "name", order: "asc" } }));
assert.deepEqual(listed.map((one) => one.name), ["blob.webm", "buffer.webm"]);
assert.equal(listed[0].metadata.size, content.length);
assert.deepEqual((await ok(files.list(""))).map((one) => [one.name, one.id]), [["js", null]]);
const page = await ok(files.listV2({ prefix: "js/", limit: 2 }));
assert.equal(page.hasNext, true);
const rest = await ok(files.listV2({ prefix: "js/", limit: 2, cursor: page.nextCursor }));
assert.deepEqual([...page.objects, ...rest.objects].map((one) => one.name), ["js/blob.webm", "js/buffer.webm", "js/stream.webm"]);
assert.deepEqual((await ok(files.listV2({ with_delimiter: true }))).folders.map((one) => one.name), ["js/"]);

// Signed URLs
const signed = await ok(files.createSignedUrl("js/buffer.webm", 60));
assert.deepEqual(await bytesOf(await (await fetch(signed.signedUrl)).blob()), content);
const many = await ok(files.createSignedUrls(["js/blob.webm", "js/none.webm"], 60));
assert.equal((await fetch(many[0].signedUrl)).status, 200);
assert.equal(many[1].signedUrl, null);
const offer = await ok(files.createSignedUploadUrl("js/signed.webm"));
await ok(files.uploadToSignedUrl("js/signed.webm", offer.token, content, { contentType: "video/webm" }));
await refused(files.uploadToSignedUrl("js/signed.webm", offer.token, content), "409", /already exists/);
await refused(files.uploadToSignedUrl("js/other.webm", offer.token, content), "400", /Invalid signature/);

// Moving, copying, removing
await ok(files.move("js/signed.webm", "js/moved.webm"));
await refused(files.move("js/signed.webm", "js/x.webm"), "404", /Object not found/);
await ok(files.copy("js/moved.webm", "js/copied.webm"));
assert.equal((await ok(files.info("js/copied.webm"))).etag, `"${md5(content)}"`);
const removed = await ok(files.remove(["js/moved.webm", "js/copied.webm", "js/none.webm"]));
assert.deepEqual(removed.map((one) => one.name).sort(), ["js/copied.webm", "js/moved.webm"]);
assert.deepEqual(await ok(files.remove(["js/none.webm"])), []);

// Other keys
await refused(client(anonKey).from("interview-recordings").upload("js/anon.webm", content), "403", /row-level security/);
await refused(client(expiredKey).from("interview-recordings").upload("js/late.webm", content), "403", /"exp" claim/);

// The end of a bucket
await refused(storage.deleteBucket("interview-recordings"), "409", /not empty/);
await ok(storage.emptyBucket("js-bucket"));
await ok(storage.deleteBucket("js-bucket"));
console.log("storage-js: every check passed");
