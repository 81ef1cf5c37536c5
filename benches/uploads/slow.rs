//! Thousands of uploads at once, each as slow as a recorder's line: what they cost, and whether anybody waits.
//!
//! Apart because the fast client of the other cases needs a thread for each. All of these run on one, and how late that
//! one is itself is told beside every figure it takes.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::client::{Data, form_end, form_head, part_head};
use super::growth::{Growth, grouped};
use super::process::Process;
use super::{Bench, MIB};

const PIECE: u64 = 16 << 10;
/// As many as a gateway takes unless told otherwise; beyond that the setting is raised.
const TAKEN_BY_DEFAULT: u32 = 2000;
/// What the gateway reckons with for each connection, and keeps for other work.
const DESCRIPTORS: (u64, u64) = (3, 64);
/// How long an answer may take after the last byte.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many, and how each of them sends.
struct Pace {
    uploads: u32,
    pieces: u32,
    /// From one piece of 16 KiB to the next.
    every: Duration,
    /// From the start of one upload to that of the next.
    apart: Duration,
}

/// What one run showed; times in milliseconds.
#[derive(Default)]
struct Seen {
    /// From an upload's last byte to its answer.
    answers: Vec<f64>,
    /// How much later than due the client came to send a piece: its own fault, not the gateway's.
    client: Vec<f64>,
    under_way: u32,
    dropped: u32,
}

struct Cost {
    seen: Seen,
    peak: f64,
    descriptors: f64,
    /// Seconds for a GiB.
    cpu: f64,
}

impl Bench {
    /// A thousand as fast as a video's recorder sends, which has a target.
    pub(super) fn thousand_slow(&mut self) -> anyhow::Result<()> {
        let every = Duration::from_millis(100);
        let pace = Pace { uploads: 1000, pieces: 20, every, apart: every / 1000 };
        let cost = self.slow_uploads(&pace)?;
        self.samples.add("slow peak", cost.peak);
        self.samples.add("slow dropped", cost.seen.dropped.into());
        Ok(())
    }

    /// More and more of them at a pace that the machine can bear from all. One begins every 4 ms, and so one ends.
    pub(super) fn slow_growth(&mut self) -> anyhow::Result<()> {
        let mut growth = Growth::new("slow", "slow uploads at once, 16 KiB every 500 ms each");
        let counts: &[u32] = if self.options.huge == 0 { &[100, 1000] } else { &[100, 1000, 5000] };
        for uploads in counts.iter().copied() {
            let wanted = u64::from(uploads) * DESCRIPTORS.0 + DESCRIPTORS.1;
            if let Some(limit) = open_files()?.filter(|limit| *limit < wanted) {
                let what = grouped(uploads.into());
                self.missing.insert(format!(
                    "{what} slow uploads at once: they need a limit on open files of {wanted} (ulimit -Hn), here it is {limit}"
                ));
                continue;
            }
            eprintln!("{uploads} slow uploads at once");
            let (every, apart) = (Duration::from_millis(500), Duration::from_millis(4));
            let Cost { seen, peak, descriptors, cpu } =
                self.slow_uploads(&Pace { uploads, pieces: 50, every, apart })?;
            growth.column(grouped(uploads.into()), Some(uploads.into()));
            growth.add_one("under way when descriptors were counted", "uploads", seen.under_way.into());
            growth.add_one("dropped", "uploads", seen.dropped.into());
            growth.add_one("peak memory", "MiB", peak);
            growth.add_one("open descriptors", "files and sockets", descriptors);
            growth.add_one("processor time for a GiB", "s", cpu);
            let (answers, client) = (&seen.answers, &seen.client);
            if let (Some(median), Some(late), Some(last)) =
                (share(answers, 0.5), share(answers, 0.99), share(answers, 1.0))
            {
                growth.add_one("last byte to answer, median", "ms", median);
                growth.add_one("last byte to answer, 99 of 100", "ms", late);
                growth.add_one("last byte to answer, the longest", "ms", last);
            }
            growth.add_one(
                "the client's own lateness, 99 of 100",
                "ms",
                share(client, 0.99).unwrap_or_default(),
            );
        }
        self.growth.push(growth);
        Ok(())
    }

    fn slow_uploads(&mut self, pace: &Pace) -> anyhow::Result<Cost> {
        let dir = self.fresh()?;
        let most = format!("uploads.max_concurrent={}", pace.uploads);
        let settings: &[&str] = if pace.uploads > TAKEN_BY_DEFAULT { &[&most] } else { &[] };
        let gateway = Process::gateway(dir.path(), None, settings)?;
        open_files()?;
        let before = gateway.cpu()?;
        let address = gateway.address;
        // The last upload is under way by then, and the first not over.
        let counted = pace.apart * pace.uploads + pace.every;
        let (seen, descriptors) = std::thread::scope(|scope| {
            // Counting thousands takes a while: not on the thread that sends.
            let counting = scope.spawn(|| {
                std::thread::sleep(counted);
                gateway.descriptors()
            });
            let seen = run(address, pace, &self.data, counted)?;
            let descriptors = counting.join().map_err(|_| anyhow::anyhow!("the count panicked"))??;
            anyhow::Ok((seen, descriptors))
        })?;
        let gib = (u64::from(pace.uploads) * u64::from(pace.pieces) * PIECE) as f64 / (1024 * MIB) as f64;
        let cost =
            Cost { seen, peak: gateway.peak_mib()?, descriptors, cpu: (gateway.cpu()? - before) / gib };
        self.crowded.push(dir);
        Ok(cost)
    }
}

/// All uploads, on this thread. `counted` is when their number is noted.
fn run(address: SocketAddr, pace: &Pace, data: &Data, counted: Duration) -> anyhow::Result<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let piece: std::rc::Rc<[u8]> = data.pieces(PIECE, PIECE as usize).next().context("no data")?.into();
    let seen = std::rc::Rc::new(RefCell::new(Seen::default()));
    let sending = std::rc::Rc::new(std::cell::Cell::new(0));
    LocalSet::new().block_on(&runtime, async {
        let start = Instant::now();
        let mut uploads = tokio::task::JoinSet::new();
        for n in 0..pace.uploads {
            let (piece, seen, sending) = (piece.clone(), seen.clone(), sending.clone());
            let (begin, pieces, every) = (start + pace.apart * n, pace.pieces, pace.every);
            uploads.spawn_local(async move {
                sleep_until(begin).await;
                sending.set(sending.get() + 1);
                let answered = upload(address, n, begin, pieces, every, &piece, &seen).await;
                sending.set(sending.get() - 1);
                match answered {
                    Ok(took) => seen.borrow_mut().answers.push(took),
                    Err(error) => {
                        let mut seen = seen.borrow_mut();
                        seen.dropped += 1;
                        if seen.dropped <= 5 {
                            eprintln!("a slow upload failed: {error:#}");
                        }
                    }
                }
            });
        }
        sleep_until(start + counted).await;
        seen.borrow_mut().under_way = sending.get();
        while let Some(ended) = uploads.join_next().await {
            ended?;
        }
        anyhow::Ok(())
    })?;
    Ok(seen.take())
}

/// One upload; milliseconds from its last byte to its answer.
async fn upload(
    address: SocketAddr,
    n: u32,
    begin: Instant,
    pieces: u32,
    every: Duration,
    piece: &[u8],
    seen: &RefCell<Seen>,
) -> anyhow::Result<f64> {
    let mut stream = TcpStream::connect(address).await.context("connecting")?;
    stream.set_nodelay(true)?;
    let path = format!("/recordings/upload/slow-{}", n % 50);
    let size = u64::from(pieces) * PIECE;
    let head = form_head(&path, size, false) + &part_head();
    let send = async {
        stream.write_all(head.as_bytes()).await?;
        for n in 1..=pieces {
            let due = begin + every * n;
            sleep_until(due).await;
            seen.borrow_mut().client.push(due.elapsed().as_secs_f64() * 1e3);
            stream.write_all(piece).await?;
        }
        stream.write_all(form_end().as_bytes()).await
    };
    let sent: std::io::Result<()> = send.await;
    let end = Instant::now();
    // A refusal is read even when it came before the end and the rest was not taken.
    let mut answer = Vec::new();
    let read = async {
        while memchr::memmem::find(&answer, b"\r\n\r\n").is_none() {
            ensure!(stream.read_buf(&mut answer).await? > 0, "closed without an answer");
        }
        Ok(())
    };
    let read = timeout(PATIENCE, read).await.context("no answer").flatten();
    let took = end.elapsed().as_secs_f64() * 1e3;
    ensure!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 200 "),
        "answered {}",
        String::from_utf8_lossy(&answer)
    );
    sent.context("sending")?;
    read.map(|()| took)
}

/// The figure that such a share of them does not exceed.
fn share(figures: &[f64], share: f64) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(((sorted.len() as f64 * share).ceil() as usize).max(1) - 1).copied()
}

/// Raises this process's limit on open files as far as it may, as the gateway does by itself, and tells it. `None` if
/// there is none.
fn open_files() -> anyhow::Result<Option<u64>> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(limit.maximum)
}
