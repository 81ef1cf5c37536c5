//! What the catalogue's operations cost as it grows: the embedded one, and PostgreSQL where `DATABASE_URL` names an
//! empty database for it. Each operation is done a hundred times; the median counts.

use std::time::Instant;

use anyhow::Context;
use recording_gateway::catalog::{
    Arrival, Audit, AuditQuery, Deletions, JobQuery, Jobs, Origin, Recordings, SqlCatalog, Work, postgres,
    sqlite,
};
use recording_gateway::domain::recording::micros;
use recording_gateway::domain::{
    ContentDigest, Durability, GatewayId, ObjectKey, Recording, StoreKind, StoreSet,
};
use recording_gateway::storage::ListScope;
use time::OffsetDateTime;

use super::growth::{Growth, grouped};
use super::table::Spread;

const TIMES: usize = 100;
/// Recordings of one session.
const SESSION: u64 = 1000;

/// The sizes are its columns.
pub fn run(sizes: &[u64], dir: &std::path::Path) -> anyhow::Result<Growth> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut growth = Growth::new("catalogue", "operation of the catalogue, median, by recordings in it");
    for size in sizes {
        eprintln!("a catalogue of {size}");
        let path = dir.join(format!("catalog-{size}.sqlite"));
        let (catalog, _) = runtime.block_on(sqlite::open(&path, GatewayId("bench".into())))?;
        let figures = runtime.block_on(measure(&catalog, *size))?;
        growth.column(grouped(*size), Some(*size as f64));
        figures.into_iter().for_each(|(what, spread)| growth.add(what, "µs", spread));
    }
    if let Ok(url) = std::env::var("DATABASE_URL") {
        let url = url.parse().context("DATABASE_URL")?;
        let size = sizes.iter().copied().rfind(|size| *size <= 10_000).unwrap_or(1);
        eprintln!("a catalogue of {size} on PostgreSQL");
        let (catalog, _) = runtime.block_on(postgres::open(&url, GatewayId("bench".into())))?;
        let figures = runtime.block_on(measure(&catalog, size))?;
        growth.column(format!("{}, PostgreSQL", grouped(size)), None);
        figures.into_iter().for_each(|(what, spread)| growth.add(what, "µs", spread));
    }
    Ok(growth)
}

/// One of those that every operation is tried on.
pub fn recording(n: u64, synced: bool) -> Recording {
    let key = ObjectKey::parse(&format!("session-{}/r{n:07}.webm", n / SESSION)).expect("a legal key");
    Recording {
        key,
        size_bytes: 1 << 20,
        sha256: Some(ContentDigest::from_bytes([7; 32])),
        content_type: "video/webm".into(),
        original_filename: None,
        durability: Durability::Cloud,
        stores: StoreSet::only(if synced { StoreKind::Supabase } else { StoreKind::Local }),
        held_by: None,
        uploaded_at: OffsetDateTime::now_utc(),
        parked_reason: None,
        upload_id: uuid::Uuid::now_v7().to_string(),
    }
}

async fn measure(catalog: &SqlCatalog, size: u64) -> anyhow::Result<Vec<(&'static str, Spread)>> {
    let by = Origin::gateway("bench");
    let mut next = 0;
    while next < size {
        let until = (next + SESSION).min(size);
        let batch: Vec<Recording> = (next..until).map(|n| recording(n, n % 100 != 0)).collect();
        catalog.adopt(&batch, true, &by).await?;
        next = until;
    }
    let some = |n: usize| recording((n as u64 * 7919) % size, true).key;
    let mut figures = Vec::new();
    macro_rules! operation {
        ($name:literal, $n:ident => $what:expr) => {{
            let mut times = Vec::with_capacity(TIMES);
            for $n in 0..TIMES {
                let start = Instant::now();
                std::hint::black_box($what);
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
            figures.push(($name, Spread::of(&times).context("no figures")?));
        }};
    }
    operation!("get one", n => catalog.get(&some(n)).await?);
    operation!("view of a session of up to 1,000", n => {
        catalog.view(&ListScope::Session(some(n).session)).await?
    });
    operation!("figures for operators", _n => catalog.counts().await?);
    operation!("newest 100 jobs", _n => catalog.list_jobs(&JobQuery { limit: 100, ..JobQuery::default() }).await?);
    operation!("newest 100 changes", _n => catalog.audit(&AuditQuery { limit: 100, ..AuditQuery::default() }).await?);
    operation!("newest 100 changes of a session", n => {
        let session = Some(some(n).session);
        catalog.audit(&AuditQuery { session, limit: 100, ..AuditQuery::default() }).await?
    });
    operation!("keep an upload (commit)", n => {
        let recording = Recording { key: ObjectKey::parse(&format!("new/{n}.webm")).context("key")?, ..recording(0, false) };
        let arrival = Arrival {
            recording: &recording,
            name_from: None,
            sync: true,
            parent: None,
            request: None,
            answer: &|_| String::new(),
        };
        catalog.commit(arrival, &by).await?
    });
    operation!("claim a job and finish it", _n => {
        let now = micros(OffsetDateTime::now_utc());
        if let Some(job) = catalog.claim_job(now, 60_000_000, Work::All).await? {
            catalog.complete_job(&job).await?;
        }
    });
    operation!("delete one (tombstone and confirmation)", n => {
        let keys = [ObjectKey::parse(&format!("new/{n}.webm")).context("key")?];
        catalog.entomb(&keys, StoreSet::only(StoreKind::Local), &by).await?;
        catalog.confirm_deleted(&keys, StoreKind::Local).await?;
    });
    Ok(figures)
}
