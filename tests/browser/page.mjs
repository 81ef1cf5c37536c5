// Drives the gateway's own page in a real Chromium: `node page.mjs BASE_URL WORKDIR [cloud]`.
//
// Records a WebM from the browser's fake camera, then does with it what a person does: send, list, play,
// seek, copy, delete by keyboard. Prints `ok <step>` for each step and exits with 1 at the first one that
// fails. Leaves fake-camera.webm and screenshots in WORKDIR. The gateway needs nothing but its defaults.
//
// With `cloud`, whoever started it plays the cloud's master: a printed line `want away` (back, refuse, keep, allow) asks
// for that, and a line on stdin says that it is so.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';

const { chromium } = createRequire(new URL('../js/', import.meta.url))('playwright-core');

const [baseArgument, workArgument, cloudArgument] = process.argv.slice(2);
if (!baseArgument || !workArgument) {
  console.error('usage: node page.mjs BASE_URL WORKDIR [cloud]');
  process.exit(2);
}
const base = new URL('/', baseArgument).href;
const work = resolve(workArgument);
mkdirSync(work, { recursive: true });
rmSync(join(work, 'failed.png'), { force: true });

const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
const PATIENCE_MS = 60_000;
const run = Date.now().toString(36);
const SESSION = `page_${run}`;
const RECORDING = join(work, 'fake-camera.webm');

const answers = cloudArgument === 'cloud' ? createInterface({ input: process.stdin })[Symbol.asyncIterator]() : null;

/** Has the cloud made so; only with `cloud`. */
async function want(what) {
  console.log(`want ${what}`);
  assert.equal((await answers.next()).done, false, 'nobody plays the cloud');
}

/** Complaints of the browser: everything here fails the run. */
const complaints = [];
/** Console lines that the step under way provokes on purpose. */
const expected = [];

function watch(page) {
  page.setDefaultTimeout(PATIENCE_MS);
  page.on('pageerror', (error) => complaints.push(`uncaught: ${error.message}`));
  page.on('console', (message) => {
    if (message.type() !== 'error' || expected.some((pattern) => pattern.test(message.text()))) return;
    complaints.push(`console: ${message.text()}`);
  });
  return page.addInitScript(() => {
    addEventListener('securitypolicyviolation', (event) => console.error(`content policy: ${event.effectiveDirective} refused ${event.blockedURI}`));
  });
}

/** Polls until `look()` answers something true. */
async function until(what, look) {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const seen = await look();
    if (seen) return seen;
    assert.ok(Date.now() < deadline, `waited in vain: ${what}`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');
const listed = async (session = SESSION) => (await (await fetch(`${base}recordings/${session}/list`)).json()).recordings ?? [];

/** A WAV of `seconds` of silence: a type that every gateway takes, of any size. */
function wav(seconds) {
  const rate = 8000;
  const data = Buffer.alloc(rate * 2 * seconds);
  const head = Buffer.alloc(44);
  head.write('RIFF', 0);
  head.writeUInt32LE(36 + data.length, 4);
  head.write('WAVEfmt ', 8);
  head.writeUInt32LE(16, 16);
  head.writeUInt16LE(1, 20);
  head.writeUInt16LE(1, 22);
  head.writeUInt32LE(rate, 24);
  head.writeUInt32LE(rate * 2, 28);
  head.writeUInt16LE(2, 32);
  head.writeUInt16LE(16, 34);
  head.write('data', 36);
  head.writeUInt32LE(data.length, 40);
  return Buffer.concat([head, data]);
}

/** Three seconds of the fake camera and microphone, as a page of this origin records them. */
async function record(page) {
  const encoded = await page.evaluate(async () => {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 360 }, audio: true });
    const recorder = new MediaRecorder(stream, { mimeType: 'video/webm;codecs=vp8,opus' });
    const pieces = [];
    recorder.ondataavailable = (event) => pieces.push(event.data);
    const stopped = new Promise((done) => { recorder.onstop = done; });
    recorder.start(250);
    await new Promise((done) => setTimeout(done, 3200));
    recorder.stop();
    await stopped;
    for (const track of stream.getTracks()) track.stop();
    const bytes = new Uint8Array(await new Blob(pieces).arrayBuffer());
    let text = '';
    for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
    return btoa(text);
  });
  writeFileSync(RECORDING, Buffer.from(encoded, 'base64'));
}

const profile = join(work, 'profile');
rmSync(profile, { recursive: true, force: true });
const context = await chromium.launchPersistentContext(profile, {
  executablePath: CHROMIUM,
  headless: true,
  viewport: { width: 1280, height: 860 },
  colorScheme: 'light',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream',
    '--autoplay-policy=no-user-gesture-required'],
});
await context.grantPermissions(['clipboard-read', 'clipboard-write', 'camera', 'microphone'], { origin: new URL(base).origin });
const page = await context.newPage();
await watch(page);

const rowOf = (filename) => page.locator(`.recording[data-filename="${filename}"]`);
const uploadOf = (name) => page.locator('.upload', { hasText: name }).last();
const openSession = async (session) => {
  await page.goto('about:blank');
  await page.goto(`${base}#s=${session}`);
  await page.locator('#shelf-heading', { hasText: session }).waitFor();
  await page.waitForFunction(() => !document.querySelector('#refresh').hasAttribute('data-busy'));
};

let camera; // the camera's recording as the gateway lists it
const steps = {
  async 'page opens and teaches'() {
    const answer = await page.goto(`${base}#s=${SESSION}`);
    assert.equal(answer.status(), 200);
    const policy = answer.headers()['content-security-policy'] ?? '';
    assert.match(policy, /default-src 'none'/);
    assert.doesNotMatch(policy, /unsafe/);
    await page.locator('#empty').waitFor();
    assert.match(await page.textContent('#empty-curl'), new RegExp(`/recordings/upload/${SESSION}$`));
    await page.waitForFunction(() => document.querySelector('#health').dataset.level !== 'unknown');
    assert.notEqual(await page.getAttribute('#health', 'data-level'), 'bad');
    const { checks } = await (await fetch(`${base}readyz`)).json();
    const words = { off: /local disk only/, ok: /cloud reachable/ };
    assert.match(await page.textContent('#health-line'), words[checks.find(({ name }) => name === 'cloud').status]);
  },

  async 'rules for names, sizes and times'() {
    const wrong = await page.evaluate(async () => {
      const words = await import(new URL('assets/words.js', location.href).href);
      const config = { max_bytes: 100, allowed_types: ['audio/*', 'video/webm'] };
      const file = (size, type) => ({ size, type });
      const checks = {
        plain: words.sessionFault('session_1.a-B') === null,
        dot: words.sessionFault('.hidden') !== null,
        reserved: words.sessionFault('upload') !== null,
        longest: words.sessionFault('x'.repeat(128)) === null && words.sessionFault('x'.repeat(129)) !== null,
        foreign: words.sessionFault('gespräch') !== null && words.sessionFault('a/b') !== null,
        fresh: words.sessionFault(words.freshSession()) === null,
        kind: words.kindFault('a-z_0') === null && words.kindFault('Big') !== null && words.kindFault('x'.repeat(33)) !== null,
        tooLarge: words.fileFault(file(101, 'audio/ogg'), config)?.certain === true,
        empty: words.fileFault(file(0, 'audio/ogg'), config)?.certain === true,
        wrongType: words.fileFault(file(5, 'video/mp4'), config)?.certain === false,
        withCodecs: words.fileFault(file(5, 'video/webm;codecs=vp8'), config) === null,
        unknownType: words.fileFault(file(5, ''), config) === null,
        sizes: words.size(1023) === '1023 B' && words.size(1536) === '1.5 KiB' && words.size(5 * 2 ** 30) === '5 GiB',
        durations: words.duration(7.2) === '8 s' && words.duration(7500) === '2 h 5 min',
        utc: words.utcTime('2024-12-01T14:30:22Z') === '2024-12-01 14:30:22 UTC',
      };
      return Object.keys(checks).filter((name) => !checks[name]);
    });
    assert.deepEqual(wrong, []);
  },

  async 'session field says what is wrong'() {
    await page.fill('#session', 'two words');
    await page.locator('#session-note.fault').waitFor();
    assert.equal(await page.getAttribute('#session', 'aria-invalid'), 'true');
    await page.setInputFiles('#files', { name: 'held.wav', mimeType: 'audio/wav', buffer: wav(1) });
    assert.equal(await page.evaluate(() => document.activeElement.id), 'session');
    assert.equal(await page.locator('.upload').count(), 0);
    await page.fill('#session', SESSION);
    await page.waitForFunction((session) => location.hash === `#s=${session}`, SESSION);
    await page.reload();
    assert.equal(await page.inputValue('#session'), SESSION);
  },

  async 'fake camera is recorded'() {
    await record(page);
    assert.ok(readFileSync(RECORDING).length > 20_000, 'the recording is too small to be three seconds of video');
  },

  async 'recording is sent through the page'() {
    const sent = page.waitForRequest((request) => request.method() === 'POST' && request.url().includes('/recordings/upload/'));
    await page.setInputFiles('#files', RECORDING);
    assert.ok((await sent).headers()['idempotency-key'], 'no Idempotency-Key was sent');
    const row = uploadOf('fake-camera.webm');
    await row.and(page.locator('[data-state="done"]')).waitFor();
    assert.match(await row.locator('[data-part="state"]').textContent(), /^(In the cloud|Kept locally)$/);
    assert.match(await row.locator('[data-part="fine"]').textContent(), /^Recording /);
  },

  async 'recording is listed'() {
    const rows = await until('one recording in the session', async () => {
      const now = await listed();
      return now.length === 1 && now;
    });
    [camera] = rows;
    assert.equal(camera.file_size, readFileSync(RECORDING).length);
    await rowOf(camera.filename).waitFor();
    assert.match(await rowOf(camera.filename).locator('.name').textContent(), /fake-camera|recording/);
    const places = rowOf(camera.filename).locator('.places');
    await places.press('Enter');
    assert.equal(await places.getAttribute('aria-expanded'), 'true');
    assert.match(await rowOf(camera.filename).locator('[data-part="details"]').textContent(), new RegExp(camera.sha256));
    assert.equal(await page.textContent('#shelf-count'), '1 recording');
    await page.evaluate(() => document.activeElement.blur());
    await page.evaluate(() => Promise.allSettled(document.getAnimations().map((animation) => animation.finished)));
    await page.screenshot({ path: join(work, 'page.png') });
    await places.press('Enter');
  },

  async 'content is the file, byte for byte'() {
    const answer = await fetch(`${base}recordings/${SESSION}/${camera.filename}/content?via=proxy`);
    assert.equal(answer.status, 200);
    assert.equal(sha256(Buffer.from(await answer.arrayBuffer())), sha256(readFileSync(RECORDING)));
  },

  async 'recording plays and seeks'() {
    const button = rowOf(camera.filename).locator('[data-part="play"]');
    await page.evaluate(() => {
      globalThis.seenOfMedia = [];
      for (const type of ['loadedmetadata', 'seeking']) {
        document.addEventListener(type, (event) => seenOfMedia.push(`${type} ${event.target.duration}`), true);
      }
    });
    await button.press('Enter');
    const video = page.locator('#player video');
    await video.waitFor();
    await page.waitForFunction(() => {
      const media = document.querySelector('#player video');
      return Number.isFinite(media.duration) && media.currentTime > 0 && media.currentTime < 2 && !media.paused;
    });
    const seen = await video.evaluate((media) => ({ width: media.videoWidth, height: media.videoHeight, seconds: media.duration }));
    assert.deepEqual([seen.width, seen.height], [640, 360]);
    assert.ok(seen.seconds > 2 && seen.seconds < 6, `a recording of three seconds plays for ${seen.seconds}`);
    // A small file is soon read to its end anyway; a longer one needs the jump to its end before it can be sought in.
    const [first, ...rest] = await page.evaluate(() => seenOfMedia);
    assert.ok(first !== 'loadedmetadata Infinity' || rest.length > 0, 'the length of a live recording was not looked for');
    const landed = await video.evaluate(async (media) => {
      media.pause();
      const jump = async (to) => {
        const arrived = new Promise((done) => media.addEventListener('seeked', done, { once: true }));
        media.currentTime = to;
        await arrived;
        return media.currentTime;
      };
      return [await jump(2), await jump(0.5)];
    });
    assert.ok(Math.abs(landed[0] - 2) < 0.3 && Math.abs(landed[1] - 0.5) < 0.3, `seeking to 2 and 0.5 landed at ${landed}`);
    await page.screenshot({ path: join(work, 'player.png') });
    await page.keyboard.press('Escape');
    await video.waitFor({ state: 'detached' });
    assert.equal(await button.evaluate((element) => element === document.activeElement), true, 'the focus did not return to Play');
  },

  async 'address is copied'() {
    await rowOf(camera.filename).locator('[data-part="copy"]').press('Enter');
    await page.locator('[data-flash="Copied"]').waitFor();
    const copied = await page.evaluate(() => navigator.clipboard.readText());
    assert.equal(copied, camera.public_url ?? `${base}recordings/${SESSION}/${camera.filename}/content`);
  },

  async 'download saves the same bytes'() {
    const saved = page.waitForEvent('download');
    await rowOf(camera.filename).locator('[data-part="download"]').click();
    const download = await saved;
    assert.equal(download.suggestedFilename(), camera.filename);
    assert.equal(sha256(readFileSync(await download.path())), sha256(readFileSync(RECORDING)));
  },

  async 'all sessions are listed'() {
    await page.click('#tab-sessions');
    const link = page.locator('.session a', { hasText: SESSION });
    await link.waitFor();
    assert.match(await link.textContent(), /1 recording/);
    await link.click();
    await rowOf(camera.filename).waitFor();
    assert.equal(new URL(page.url()).hash, `#s=${SESSION}`);
  },

  async 'wrong type is refused before and after sending'() {
    const posts = [];
    const note = (request) => request.method() === 'POST' && posts.push(request.url());
    page.on('request', note);
    await page.setInputFiles('#files', { name: 'letter.txt', mimeType: 'text/plain', buffer: Buffer.from('Only words, no sound.\n'.repeat(20)) });
    const row = uploadOf('letter.txt');
    await row.and(page.locator('[data-state="refused"]')).waitFor();
    assert.match(await row.locator('[data-part="state"]').textContent(), /text\/plain/);
    assert.deepEqual(posts, []);
    page.off('request', note);

    expected.push(/status of 415/);
    const refused = page.waitForResponse((response) => response.url().includes('/recordings/upload/'));
    await row.getByRole('button', { name: /anyway/ }).click();
    const problem = await (await refused).json();
    await row.and(page.locator('[data-state="failed"]')).waitFor();
    assert.equal(await row.locator('[data-part="state"]').textContent(), problem.detail);
    assert.equal(await row.locator('[data-part="fine"]').textContent(), `Request ${problem.request_id}`);
    expected.pop();
    assert.equal((await listed()).length, 1);
    await row.getByRole('button', { name: /^Dismiss/ }).click();
  },

  async 'cancelled upload leaves nothing'() {
    const wire = await context.newCDPSession(page);
    await wire.send('Network.enable');
    const speed = (uploadThroughput) => wire.send('Network.emulateNetworkConditions', { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput });
    await speed(400_000);
    await page.setInputFiles('#files', { name: 'long.wav', mimeType: 'audio/wav', buffer: wav(500) });
    const row = uploadOf('long.wav');
    await page.waitForFunction(() => document.querySelector('.upload[data-state="sending"] progress')?.value > 0.02);
    await row.locator('[data-part="state"]', { hasText: /\/s, .* left/ }).waitFor();
    await page.screenshot({ path: join(work, 'uploading.png') });
    await row.getByRole('button', { name: 'Cancel long.wav' }).press('Enter');
    await row.and(page.locator('[data-state="cancelled"]')).waitFor();
    await speed(-1);
    // A later upload is stored after whatever the cancelled one could have left behind.
    await page.setInputFiles('#files', { name: 'after.wav', mimeType: 'audio/wav', buffer: wav(1) });
    await uploadOf('after.wav').and(page.locator('[data-state="done"]')).waitFor();
    const names = (await listed()).map((item) => item.file_size);
    assert.deepEqual(names.sort(), [camera.file_size, wav(1).length].sort());
    await page.locator('.recording').nth(1).waitFor();
    assert.equal(await page.locator('.recording').count(), 2);
  },

  async 'dropped files are sent'() {
    await openSession(`${SESSION}_drop`);
    await page.evaluate((text) => {
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      const carried = new DataTransfer();
      carried.items.add(new File([bytes], 'dropped-one.wav', { type: 'audio/wav' }));
      carried.items.add(new File([bytes], 'dropped-two.wav', { type: 'audio/wav' }));
      document.body.dispatchEvent(new DragEvent('dragenter', { dataTransfer: carried, bubbles: true, cancelable: true }));
      document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: carried, bubbles: true, cancelable: true }));
    }, wav(1).toString('base64'));
    await page.locator('.upload[data-state="done"]').nth(1).waitFor();
    await page.locator('.recording').nth(1).waitFor();
    assert.equal((await listed(`${SESSION}_drop`)).length, 2);
  },

  async 'retry after a lost answer stores nothing twice'() {
    const session = `${SESSION}_retry`;
    await openSession(session);
    // The gateway stores the file, but its first answer gets lost on the way back.
    await page.evaluate(() => {
      const { send } = XMLHttpRequest.prototype;
      XMLHttpRequest.prototype.send = function lossy(...body) {
        XMLHttpRequest.prototype.send = send;
        this.onload = this.onerror;
        return send.apply(this, body);
      };
    });
    await page.setInputFiles('#files', { name: 'once.wav', mimeType: 'audio/wav', buffer: wav(1) });
    const row = uploadOf('once.wav');
    await row.and(page.locator('[data-state="failed"]')).waitFor();
    assert.equal((await listed(session)).length, 1, 'the first attempt should have been stored');
    await row.getByRole('button', { name: 'Retry once.wav' }).press('Enter');
    await row.and(page.locator('[data-state="done"]')).waitFor();
    assert.equal((await listed(session)).length, 1, 'the retry was stored as a second recording');
    await fetch(`${base}recordings/${session}`, { method: 'DELETE' });
  },

  async 'refresh brings new rows and keeps the focus'() {
    await openSession(SESSION);
    const button = rowOf(camera.filename).locator('[data-part="delete"]');
    await button.focus();
    const form = new FormData();
    form.append('recording', new Blob([wav(1)], { type: 'audio/wav' }), 'from-elsewhere.wav');
    assert.equal((await fetch(`${base}recordings/upload/${SESSION}`, { method: 'POST', body: form })).status, 200);
    await page.evaluate(() => document.dispatchEvent(new Event('visibilitychange'))); // as if the tab was shown again
    await page.waitForFunction((expected) => document.querySelectorAll('.recording').length === expected, (await listed()).length);
    assert.equal(await button.evaluate((element) => element === document.activeElement), true, 'the refresh took the focus away');
  },

  async 'degraded, parked, hostile and many'() {
    // What a gateway answers while its cloud is away, made here because this one may have no cloud.
    const hostile = '<img src=x onerror="document.title=1">.webm';
    const made = Array.from({ length: 70 }, (_, at) => ({
      filename: `made_${at} #%?.webm`, file_path: `s/made_${at}`, public_url: null, bucket: null, storage_type: 'local', stores: ['local'],
      file_size: 2048, upload_time: '2024-12-01T14:30:22Z', content_type: 'video/webm', sha256: 'ab'.repeat(32), durability: 'local',
      original_filename: at === 0 ? hostile : null, parked_reason: at === 1 ? 'The bucket takes no file this large.' : null,
    }));
    await page.route('**/recordings/*/list?*', (route) => {
      const asked = new URL(route.request().url()).searchParams;
      const from = Number(asked.get('cursor') ?? 0);
      const to = from + Number(asked.get('limit'));
      return route.fulfill({ json: {
        session_id: 'made', recordings: made.slice(from, to), total_count: made.length, next_cursor: to < made.length ? String(to) : null,
        degraded: true, unavailable_stores: ['supabase'],
      } });
    });
    await openSession('made');
    await page.locator('#degraded', { hasText: 'Supabase can’t be asked' }).waitFor();
    assert.equal(await page.locator('.recording').first().locator('.name').textContent(), hostile);
    assert.equal(await page.locator('.recording img').count(), 0);
    const parked = page.locator('.recording').nth(1);
    assert.match(await parked.locator('.places').textContent(), /Parked/);
    await parked.locator('.places').click();
    assert.match(await parked.locator('[data-part="promise"]').textContent(), /The bucket takes no file this large/);
    assert.match(await parked.locator('[data-part="download"]').getAttribute('href'), /made_1%20%23%25%3F\.webm\/content/);
    assert.equal(await page.locator('.recording').count(), 50);
    await page.locator('#more').press('Enter');
    await page.locator('.recording').nth(69).waitFor();
    assert.equal(await page.locator('#more').isVisible(), false);
    assert.equal(await page.evaluate(() => document.activeElement.closest('.recording')?.dataset.filename), 'made_50 #%?.webm');
    await page.unroute('**/recordings/*/list?*');
  },

  async 'what waits for the cloud is shown, and moves there, without a reload'() {
    if (!answers) return;
    await openSession(`${SESSION}_live`);
    await page.waitForFunction(async () => (await import(new URL('assets/live.js', location.href).href)).flowing());
    await page.evaluate(() => { globalThis.stayed = true; });
    await want('away');
    await page.setInputFiles('#files', { name: 'waits.wav', mimeType: 'audio/wav', buffer: wav(1) });
    await uploadOf('waits.wav').locator('[data-part="state"]', { hasText: 'Kept locally' }).waitFor();
    const row = page.locator('.recording', { hasText: 'waits.wav' });
    await row.locator('.chip.waiting').waitFor();
    await page.locator('#cloudward-line', { hasText: /waits for the cloud|to send/ }).waitFor();
    // Told by somebody else, it is shown as soon, and sooner than a poll's interval.
    const form = new FormData();
    form.append('recording', new Blob([wav(2)], { type: 'audio/wav' }), 'from-elsewhere.wav');
    assert.equal((await fetch(`${base}recordings/upload/${SESSION}_live`, { method: 'POST', body: form })).status, 200);
    await page.locator('.recording', { hasText: 'from-elsewhere.wav' }).waitFor({ timeout: 12_000 });
    await page.locator('#cloudward-line', { hasText: /^2 recordings are kept here|1 recording is kept here/ }).waitFor();
    await page.screenshot({ path: join(work, 'waiting.png') });
    await want('back');
    await page.waitForFunction(() => document.querySelectorAll('.recording .chip.cloud').length === 2 && !document.querySelector('.chip.waiting'));
    await uploadOf('waits.wav').locator('[data-part="state"]', { hasText: 'In the cloud' }).waitFor();
    await page.locator('#cloudward').waitFor({ state: 'hidden' });
    assert.equal(await page.evaluate(() => globalThis.stayed), true, 'the page was loaded again');
    // The health line looks up to five seconds after the last event; then nothing, for longer than a poll's interval.
    let asked = [];
    let last = Date.now();
    const note = (request) => {
      asked.push(request.url());
      last = Date.now();
    };
    page.on('request', note);
    await until('the last look after the last event', () => Date.now() - last > 6000);
    asked = [];
    await new Promise((done) => setTimeout(done, 16_000));
    page.off('request', note);
    assert.deepEqual(asked, [], 'it polls although events flow');
  },

  async 'what is parked says why and is tried again'() {
    if (!answers) return;
    for (const [name, button] of [['parked-one.wav', '#cloudward .job button'], ['parked-two.wav', '.recording [data-part="again"]:not([hidden])']]) {
      await want('refuse');
      await page.setInputFiles('#files', { name, mimeType: 'audio/wav', buffer: wav(1) });
      const row = page.locator('.recording', { hasText: name });
      await row.locator('.chip.parked').waitFor();
      const job = page.locator('#cloudward .job[data-state="parked"]');
      await job.locator('.note', { hasText: /Parked: .{10,}/ }).waitFor();
      await page.evaluate(() => document.querySelector('.recording [aria-expanded="true"]')?.click());
      await row.locator('.places').click();
      assert.match(await row.locator('[data-part="promise"]').textContent(), /stays here and is not sent to the cloud: .{10,}/);
      await page.evaluate(() => document.querySelector('#cloudward').scrollIntoView({ block: 'end' }));
      await page.screenshot({ path: join(work, `${name}.png`) });
      await want('allow');
      await page.locator(button).press('Enter');
      await row.locator('.chip.cloud').waitFor();
      assert.equal(await row.locator('[data-part="again"]').isVisible(), false);
      await page.locator('#cloudward').waitFor({ state: 'hidden' });
      const lost = await page.evaluate(() => document.activeElement === document.body);
      assert.equal(lost, false, 'the focus was lost with the button');
    }
  },

  async 'what the cloud will not delete says why and is tried again'() {
    if (!answers) return;
    const name = (await listed(`${SESSION}_live`))[0].filename;
    await want('keep');
    assert.equal((await fetch(`${base}recordings/${SESSION}_live/${name}`, { method: 'DELETE' })).status, 202);
    await page.locator('#cloudward-line', { hasText: '1 deletion does not succeed.' }).waitFor();
    const job = page.locator('#cloudward .job', { hasText: name });
    await job.locator('.note', { hasText: /Deleted, but not gone after \d+ tries: .{10,}/ }).waitFor();
    await want('allow');
    await job.locator('button').press('Enter');
    await page.locator('#cloudward').waitFor({ state: 'hidden' });
    await fetch(`${base}recordings/${SESSION}_live`, { method: 'DELETE' });
  },

  async 'whole session is deleted'() {
    await openSession(`${SESSION}_drop`);
    await page.locator('.recording').nth(1).waitFor();
    await page.click('#delete-session');
    assert.equal(await page.textContent('#question-name'), `${SESSION}_drop`);
    await page.click('#question-confirm');
    await page.locator('#empty').waitFor();
    assert.equal((await listed(`${SESSION}_drop`)).length, 0);
  },

  async 'recording is deleted by keyboard alone'() {
    await openSession(SESSION);
    await rowOf(camera.filename).waitFor();
    const before = await page.locator('.recording').count();
    const focused = () => page.evaluate(() => {
      const element = document.activeElement;
      return { part: element.dataset.part, id: element.id, file: element.closest('.recording')?.dataset.filename, ring: element.matches(':focus-visible') };
    });
    await page.keyboard.press('Tab');
    assert.equal((await focused()).id, 'skip', 'the skip link is not first');
    await page.keyboard.press('Enter');
    assert.equal((await focused()).id, 'recordings');
    const reach = async () => {
      for (let presses = 0; presses < 40; presses += 1) {
        await page.keyboard.press('Tab');
        const at = await focused();
        if (at.part === 'delete' && at.file === camera.filename) return at;
      }
      return assert.fail('Tab never reached the delete button');
    };
    assert.equal((await reach()).ring, true, 'the focus is not visible');
    await page.keyboard.press('Enter');
    assert.equal((await focused()).id, 'question-cancel');
    assert.match(await page.textContent('#question-name'), new RegExp(camera.filename));
    await page.keyboard.press('Escape');
    await page.locator('#question').waitFor({ state: 'hidden' });
    assert.equal((await focused()).part, 'delete', 'the focus did not return to the delete button');
    assert.equal((await listed()).length, before);

    await page.keyboard.press('Enter');
    await page.keyboard.press('Tab');
    assert.equal((await focused()).id, 'question-confirm');
    // The answer is held back: the list, which follows what happens, may lose the row before the page hears of it.
    let answer;
    const held = new Promise((done) => { answer = done; });
    await page.route(`**/${camera.filename}`, async (route) => {
      const response = await route.fetch();
      await held;
      await route.fulfill({ response });
    });
    await page.keyboard.press('Enter');
    await rowOf(camera.filename).waitFor({ state: 'detached' });
    const kept = async () => {
      const at = await focused();
      assert.ok(at.part === 'delete' || at.id === 'shelf-heading', `the focus was lost to ${JSON.stringify(at)}`);
    };
    await kept();
    answer();
    await page.locator('#live', { hasText: /deleted/i }).waitFor({ state: 'attached' });
    await kept();
    assert.ok((await listed()).every((item) => item.filename !== camera.filename));
    assert.equal(await page.locator('.recording').count(), before - 1);
  },

  async 'phone has no sideways scrolling and large targets'() {
    await page.setViewportSize({ width: 390, height: 844 });
    await page.setInputFiles('#files', { name: `${'a_very_long_name_'.repeat(8)}.wav`, mimeType: 'audio/wav', buffer: wav(1) });
    await page.locator('.upload[data-state="done"]').last().waitFor();
    await page.locator('.recording').nth(1).waitFor();
    await page.locator('.places').first().click();
    const seen = await page.evaluate(() => ({
      page: document.documentElement.scrollWidth,
      screen: document.documentElement.clientWidth,
      small: [...document.querySelectorAll('button, a, summary, input:not([type="file"])')]
        .filter((element) => element.getClientRects().length > 0)
        .map((element) => [element.id || element.className, element.getBoundingClientRect()])
        .filter(([, box]) => box.width < 43.5 || box.height < 43.5)
        .map(([name, box]) => `${name} ${Math.round(box.width)}x${Math.round(box.height)}`),
    }));
    assert.ok(seen.page <= seen.screen, `the page is ${seen.page} wide on a screen of ${seen.screen}`);
    assert.deepEqual(seen.small, []);
    await page.evaluate(() => scrollTo(0, 0));
    await page.screenshot({ path: join(work, 'phone.png'), fullPage: true });
    await page.setViewportSize({ width: 1280, height: 860 });
  },

  async 'dark is dark'() {
    const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0));
    assert.ok((await ground()) > 600);
    await page.emulateMedia({ colorScheme: 'dark' });
    assert.ok((await ground()) < 150);
    await page.evaluate(() => scrollTo(0, 0));
    await page.screenshot({ path: join(work, 'dark.png') });
  },

  async 'leaving while an upload runs asks first'() {
    const other = await context.newPage();
    await watch(other);
    await other.goto(`${base}#s=${SESSION}`);
    const wire = await context.newCDPSession(other);
    await wire.send('Network.enable');
    await wire.send('Network.emulateNetworkConditions', { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: 200_000 });
    await other.click('#shelf-heading'); // without a gesture the browser doesn't ask
    await other.setInputFiles('#files', { name: 'leaving.wav', mimeType: 'audio/wav', buffer: wav(500) });
    await other.locator('.upload[data-state="sending"]').waitFor();
    const asked = other.waitForEvent('dialog');
    await other.close({ runBeforeUnload: true });
    const dialog = await asked;
    assert.equal(dialog.type(), 'beforeunload');
    const closed = other.waitForEvent('close');
    await dialog.accept();
    await closed;
  },

  async 'browser had nothing to complain about'() {
    assert.deepEqual(complaints, []);
  },
};

let failed = false;
for (const [name, step] of Object.entries(steps)) {
  try {
    await step();
    console.log(`ok ${name}`);
  } catch (error) {
    failed = true;
    console.error(`FAILED ${name}\n${error.stack}`);
    for (const line of complaints) console.error(`browser: ${line}`);
    await page.screenshot({ path: join(work, 'failed.png') }).catch(() => {});
    break;
  }
}
await fetch(`${base}recordings/${SESSION}`, { method: 'DELETE' }).catch(() => {});
await context.close();
rmSync(profile, { recursive: true, force: true });
process.exit(failed ? 1 : 0);
