// The loop of the Node clients: `run(call)` takes URL SECONDS PAUSE_MS from argv and prints one JSON line.

const reason = (error) => [error, error.cause, ...(error.errors ?? error.cause?.errors ?? [])].filter(Boolean).join(' <- ');

export async function run(call) {
  const [url, seconds, pauseMs] = process.argv.slice(2);
  const report = { ok: 0, failed: 0, statuses: {}, first_error: null };
  const end = performance.now() + Number(seconds) * 1000;
  for (;;) {
    let error = null;
    try {
      const { status, body } = await call(url);
      report.statuses[status] = (report.statuses[status] ?? 0) + 1;
      if (status < 200 || status > 299) error = `status ${status}: ${body.slice(0, 300)}`;
    } catch (caught) {
      error = reason(caught);
    }
    report[error === null ? 'ok' : 'failed'] += 1;
    report.first_error ??= error;
    if (performance.now() + Number(pauseMs) >= end) break;
    await new Promise((resolve) => setTimeout(resolve, Number(pauseMs)));
  }
  console.log(JSON.stringify(report));
}
