//! The one list of metrics: names, units, help. Rooms count through the functions here; `render` writes what
//! Prometheus reads.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Seconds an upload may take, in buckets from a voice memo to an hour of video.
const SECONDS: [f64; 14] =
    [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1200.0, 3600.0];

/// Sets the recorder up, once a process.
pub fn init() {
    HANDLE.get_or_init(|| {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
            .and_then(PrometheusBuilder::install_recorder)
            .ok()?;
        describe_counter!(
            "gateway_uploads_total",
            "Uploads that came to an end, by outcome (cloud, local, cloud_unavailable, parked, failed)"
        );
        describe_counter!("gateway_upload_bytes_total", Unit::Bytes, "Bytes of finished recordings");
        describe_gauge!("gateway_uploads_in_flight", "Uploads being received");
        describe_histogram!(
            "gateway_upload_seconds",
            Unit::Seconds,
            "From the first byte of an upload to its answer"
        );
        describe_counter!("gateway_requests_total", "HTTP requests, by method, route and status");
        describe_histogram!(
            "gateway_request_seconds",
            Unit::Seconds,
            "From a request's head to its answer's head, by route"
        );
        describe_counter!("gateway_deletions_total", "Recordings deleted, by outcome (done, pending)");
        describe_counter!(
            "gateway_jobs_total",
            "Background jobs tried, by kind and outcome (done, failed, parked, dropped)"
        );
        describe_gauge!(
            "gateway_cloud_breaker_state",
            "0 the cloud is used, 1 it is being tried, 2 it is left alone"
        );
        describe_gauge!("gateway_recordings", "Recordings the catalogue knows");
        describe_gauge!(
            "gateway_unsynced_recordings",
            "Recordings that only the local disk has and that wait for the cloud"
        );
        describe_gauge!("gateway_unsynced_bytes", Unit::Bytes, "Their bytes");
        describe_gauge!("gateway_unsynced_oldest_seconds", Unit::Seconds, "Age of the oldest of them");
        describe_gauge!("gateway_parked_recordings", "Recordings the cloud will not take");
        describe_gauge!("gateway_jobs_waiting", "Jobs that wait or run");
        describe_gauge!(
            "gateway_unfinished_jobs",
            "Jobs by kind and state (open: they wait or run; parked: somebody has to change something)"
        );
        describe_gauge!(
            "gateway_stuck_deletions",
            "Deletions that failed several times: the cloud or the disk keeps what was deleted"
        );
        describe_gauge!("gateway_jobs_running", "Jobs that this gateway is at, by kind");
        describe_gauge!("gateway_disk_free_bytes", Unit::Bytes, "Free space where recordings are kept");
        describe_gauge!(
            "gateway_disk_reserved_bytes",
            Unit::Bytes,
            "Of the free space, what running uploads were promised and have not written yet"
        );
        describe_gauge!(
            "gateway_cache_bytes",
            Unit::Bytes,
            "Cloud recordings kept on this disk to be played"
        );
        describe_counter!(
            "gateway_cache_requests_total",
            "Reads of cloud recordings through the gateway while there is a cache, by outcome (hit, miss)"
        );
        Some(handle)
    });
}

/// Everything counted so far, in the text format of Prometheus.
pub fn render() -> String {
    HANDLE.get().and_then(Option::as_ref).map(PrometheusHandle::render).unwrap_or_default()
}

/// Folds histograms; without it they grow between two scrapes.
pub fn upkeep() {
    if let Some(handle) = HANDLE.get().and_then(Option::as_ref) {
        handle.run_upkeep();
    }
}

/// An upload came to an end.
pub fn upload_ended(outcome: &'static str, size_bytes: u64, took: Duration) {
    counter!("gateway_uploads_total", "outcome" => outcome).increment(1);
    counter!("gateway_upload_bytes_total").increment(size_bytes);
    histogram!("gateway_upload_seconds").record(took.as_secs_f64());
}

/// An upload began (`1.0`) or ended (`-1.0`).
pub fn uploads_in_flight(change: f64) {
    gauge!("gateway_uploads_in_flight").increment(change);
}

/// A request was answered.
pub fn request_answered(method: String, route: String, status: u16, took: Duration) {
    histogram!("gateway_request_seconds", "route" => route.clone()).record(took.as_secs_f64());
    counter!("gateway_requests_total", "method" => method, "route" => route, "status" => status.to_string())
        .increment(1);
}

/// A recording was deleted.
pub fn deleted(outcome: &'static str) {
    counter!("gateway_deletions_total", "outcome" => outcome).increment(1);
}

/// A job was tried.
pub fn job_tried(kind: &'static str, outcome: &'static str) {
    counter!("gateway_jobs_total", "kind" => kind, "outcome" => outcome).increment(1);
}

/// A job is being tried for as long as the returned value lives.
pub fn job_running(kind: &'static str) -> JobRunning {
    gauge!("gateway_jobs_running", "kind" => kind).increment(1.0);
    JobRunning(kind)
}

/// A job that is counted as running.
pub struct JobRunning(&'static str);

impl Drop for JobRunning {
    fn drop(&mut self) {
        gauge!("gateway_jobs_running", "kind" => self.0).decrement(1.0);
    }
}

/// The bytes of a cloud recording were wanted, and the cache had them (`hit`) or not (`miss`).
pub fn cache_asked(outcome: &'static str) {
    counter!("gateway_cache_requests_total", "outcome" => outcome).increment(1);
}

/// Jobs of a kind that are open, and those that are parked.
pub fn set_unfinished(kind: &'static str, open: u64, parked: u64) {
    gauge!("gateway_unfinished_jobs", "kind" => kind, "state" => "open").set(open as f64);
    gauge!("gateway_unfinished_jobs", "kind" => kind, "state" => "parked").set(parked as f64);
}

/// A figure that is read when somebody asks.
pub fn set_gauge(name: &'static str, value: f64) {
    gauge!(name).set(value);
}
