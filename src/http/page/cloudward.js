// What is on its way to the cloud, in all sessions: how much waits, what is being sent, what is parked and why, with a
// button to try it again. Shows nothing while there is nothing to tell.

import { api, Problem } from './api.js';
import { announce, byId, fromTemplate, setName, setText } from './dom.js';
import { eased, flowing, listen } from './live.js';
import { count, size } from './words.js';

const LOOK_MS = 15_000;
const MOST_ROWS = 5; // of each kind: the rest is a number

const rows = new Map();

export function startCloudward() {
  const soon = eased(look);
  listen((name, data) => {
    if (name !== 'health' && !(name === 'upload' && data.state !== 'kept')) soon();
  });
  setInterval(() => flowing() || document.hidden || soon(), LOOK_MS);
  look();
}

async function look() {
  let plan, running, parked;
  try {
    plan = await api.syncPlan();
    [running, parked] = await Promise.all(['running', 'parked'].map((state) => api.syncs(state, MOST_ROWS)));
  } catch {
    return; // what was shown is the best that is known; the status line says what is wrong
  }
  show(plan, running, parked);
}

function show(plan, running, parked) {
  const waiting = Math.max(0, plan.count - running.length);
  const line = [];
  if (waiting > 0) line.push(`${count(waiting, 'recording')} ${waiting === 1 ? 'is' : 'are'} kept here and ${waiting === 1 ? 'waits' : 'wait'} for the cloud.`);
  if (plan.bytes > 0) line.push(`${size(plan.bytes)} to send.`);
  if (plan.parked > 0) line.push(`${count(plan.parked, 'recording')} ${plan.parked === 1 ? 'is' : 'are'} parked.`);
  setText(byId('cloudward-line'), line.join(' '));

  const jobs = new Map([...running, ...parked].map((job) => [job.id, job]));
  for (const [id, { element }] of rows) {
    if (jobs.has(id)) continue;
    if (element.contains(document.activeElement)) byId('cloudward-heading').focus();
    element.remove();
    rows.delete(id);
  }
  for (const [id, job] of jobs) {
    if (!rows.has(id)) rows.set(id, row());
    const { element, update } = rows.get(id);
    update(job);
    byId('cloudward-jobs').append(element);
  }
  byId('cloudward').hidden = plan.count === 0 && plan.parked === 0 && jobs.size === 0;
}

function row() {
  const { element, parts } = fromTemplate('job-row');
  let job = null;
  parts.retry.addEventListener('click', async () => {
    parts.retry.disabled = true;
    try {
      await api.retryJob(job.id);
      announce(`${job.filename} is tried again.`);
    } catch (error) {
      setText(parts.state, error instanceof Problem ? error.detail : String(error));
    }
    await look();
    parts.retry.disabled = false;
  });
  function update(now) {
    job = now;
    const parkedNow = job.state === 'parked';
    element.dataset.state = job.state;
    setName(parts.title, job.filename);
    setText(parts.state, `Session ${job.session_id}. ${parkedNow ? `Parked: ${job.last_error}` : 'Being sent to the cloud.'}`);
    parts.retry.hidden = !parkedNow;
    parts.retry.setAttribute('aria-label', `Try again to send ${job.filename}`);
  }
  return { element, update };
}
