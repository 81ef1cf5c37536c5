// The status line in the header, from /readyz: one sentence, and every check when it is opened.

import { api, Problem } from './api.js';
import { byId, make, setText } from './dom.js';
import { eased, flowing, listen } from './live.js';

const LEVELS = { ready: 'good', ok: 'good', degraded: 'warn', off: 'off' };
const level = (status) => LEVELS[status] ?? 'bad';
const HEADLINES = { good: 'Ready', warn: 'Working, with limits', bad: 'Not accepting uploads' };
const INTERVAL_MS = 15_000;

/** `cloudConfigured()` answers true, false, or undefined while it isn't known. */
export function startHealth(cloudConfigured) {
  const look = async () => {
    if (!document.hidden && !flowing()) await show(cloudConfigured());
    setTimeout(look, INTERVAL_MS);
  };
  // What is free on the disk changes with recordings; whether the cloud can be reached has an event of its own.
  const soon = eased(() => show(cloudConfigured()), 5000);
  listen((name, data) => {
    if (name === 'health' || name === 'reset' || name === 'deletion' || data.state === 'kept' || data.state === 'done') soon();
  });
  document.addEventListener('visibilitychange', () => document.hidden || show(cloudConfigured()));
  document.addEventListener('click', (event) => {
    if (!byId('health').contains(event.target)) byId('health').open = false;
  });
  byId('health').addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return;
    byId('health').open = false;
    byId('health').querySelector('summary').focus();
  });
  look();
}

async function show(cloudConfigured) {
  let health;
  try {
    health = await api.health();
  } catch (error) {
    const detail = error instanceof Problem ? error.detail : String(error);
    return render('bad', ['No answer from the gateway'], [{ name: 'gateway', status: 'unavailable', detail }]);
  }
  const checks = Array.isArray(health.checks) ? health.checks : [];
  const find = (wanted) => checks.find(({ name }) => name === wanted);
  const overall = level(health.status);
  const line = [HEADLINES[overall] ?? 'Ready'];

  const cloud = find('cloud');
  if (cloudConfigured === false || (cloud && level(cloud.status) === 'off')) line.push('local disk only');
  else if (cloud) line.push(level(cloud.status) === 'good' ? 'cloud reachable' : 'cloud not reachable');
  const disk = find('disk');
  if (disk?.detail) line.push(disk.detail);
  render(overall, line, checks);
}

function render(overall, line, checks) {
  byId('health').dataset.level = overall;
  setText(byId('health-line'), line.join(' · '));
  byId('health-checks').replaceChildren(
    ...checks.map(({ name, status, detail }) => {
      const dot = make('span', { className: 'dot' });
      const row = make('li', {}, dot, make('strong', {}, name), make('span', {}, `${status}${detail ? `: ${detail}` : ''}`));
      row.dataset.level = level(status);
      return row;
    }),
  );
}
