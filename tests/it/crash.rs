//! The real program killed with SIGKILL: at every named point of each way through it, and at random ones under load.
//! After each kill it is started again on the same directory and held to what it had answered.
//!
//! A point is named by the operation on a file that comes next or was the last, like "before the second rename in a
//! session's directory"; a run without a kill tells which there are. Kills of one test run: more than 200, of which each
//! test counts its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::cloud::{deletions, uploads};
use crate::support::eventually;
use crate::support::fake_supabase::Fault;
use crate::support::process::Process;
use crate::support::raw_client;
use crate::support::rig::Rig;
use crate::support::shim::{Action, Operation, Plan};

const SUITE: &str = "crash";

/// How long the gateway may go on after its answer until the kill is given up.
const AFTER_THE_ANSWER: Duration = Duration::from_millis(100);

/// The points of one run: before each operation that differs from the one before it, and after those that make
/// something of a recording durable, visible or gone.
fn points(log: &[Operation]) -> Vec<Plan> {
    let mut counts = BTreeMap::new();
    let (mut points, mut last) = (Vec::new(), None);
    for Operation { operation, class, .. } in log {
        let kind = (operation.clone(), class.clone());
        let count: &mut usize = counts.entry(kind.clone()).or_default();
        *count += 1;
        let plan = |action| Plan::nth(action, *count).of(operation, class);
        if last.as_ref() != Some(&kind) {
            points.push(plan(Action::KillBefore));
        }
        if class != "catalog"
            && ["create", "fsync", "rename", "unlink", "mkdir"].contains(&operation.as_str())
        {
            points.push(plan(Action::KillAfter));
        }
        last = Some(kind);
    }
    points
}

/// What a test does around its kills.
struct Story<Prepare, Act, Again> {
    /// Runs before the kill is armed and says what to act on.
    prepare: Prepare,
    /// What is killed.
    act: Act,
    /// Runs after the restart, before the check.
    again: Again,
}

/// Kills a story at each of its points, and returns how many kills that were.
async fn kill_at_every_point<Prepare, Act, Again>(rig: &Rig, story: Story<Prepare, Act, Again>) -> usize
where
    Prepare: AsyncFn(&Process, &str) -> String,
    Act: AsyncFn(&Process, &str, &str),
    Again: AsyncFn(&Process, &str, &str),
{
    let begun = Instant::now();
    let mut process = rig.start();
    rig.cloud_answers(&process).await;
    let subject = (story.prepare)(&process, "counted").await;
    rig.faults.arm(&Plan::nth(Action::Count, 1));
    (story.act)(&process, "counted", &subject).await;
    tokio::time::sleep(AFTER_THE_ANSWER).await;
    let points = points(&rig.faults.log());
    rig.faults.disarm();
    let mut kills = 0;
    for (n, plan) in points.iter().enumerate() {
        let session = format!("point-{n}");
        let subject = (story.prepare)(&process, &session).await;
        rig.faults.arm(plan);
        (story.act)(&process, &session, &subject).await;
        let answered = Instant::now();
        while !process.was_killed() && answered.elapsed() < AFTER_THE_ANSWER {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        kills += usize::from(process.was_killed());
        process = rig.crash(process).await;
        (story.again)(&process, &session, &subject).await;
        rig.ledger.check(&process.url, &rig.root()).await;
    }
    println!("{kills} kills at {} points in {:?}", points.len(), begun.elapsed());
    // Which operations of the background fall into a run differs from run to run.
    assert!(kills * 2 >= points.len(), "{kills} of {} points were reached", points.len());
    rig.ledger.check_everything(&process.url, &rig.root()).await;
    if let Some(cloud) = &rig.cloud {
        rig.ledger.drains_into(cloud).await;
    }
    process.stop_in_order();
    kills
}

const QUICK: &[(&str, &str)] =
    &[("storage.min_free", "0"), ("sync.interval", "50ms"), ("supabase.breaker_failures", "1000")];

/// reliability 1, 2, 4
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_keeps_an_upload_here() {
    let Some(rig) = Rig::local(SUITE, QUICK) else { return };
    let story = Story {
        prepare: async |_: &Process, _: &str| String::new(),
        act: async |process: &Process, session: &str, _: &str| {
            rig.ledger.upload(&process.url, session, 300_000).await;
        },
        again: async |_: &Process, _: &str, _: &str| {},
    };
    assert!(kill_at_every_point(&rig, story).await >= 10);
}

/// A client that got no answer sends again, under the same key, and has its recording once. reliability 2
#[tokio::test(flavor = "multi_thread")]
async fn killed_and_repeated_a_keyed_upload_is_there_once() {
    for cloud in [false, true] {
        let rig = if cloud { Rig::with_cloud(SUITE, QUICK).await } else { Rig::local(SUITE, QUICK) };
        let Some(rig) = rig else { return };
        // What is sent again must be the same bytes, so the session says which.
        let bytes =
            |session: &str| crate::support::media::webm(3000, session.len() as u64 * 1000 + number(session));
        let send = async |process: &Process, session: &str| {
            let key = [("Idempotency-Key", session)];
            rig.ledger.upload_with(&process.url, session, bytes(session), &key).await
        };
        let story = Story {
            prepare: async |_: &Process, _: &str| String::new(),
            act: async |process: &Process, session: &str, _: &str| {
                send(process, session).await;
            },
            again: async |process: &Process, session: &str, _: &str| {
                let (status, answer) = send(process, session).await.expect("an answer comes");
                assert_eq!(status, 200, "{answer}");
            },
        };
        assert!(kill_at_every_point(&rig, story).await >= 8);
    }
}

fn number(session: &str) -> u64 {
    session.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(999)
}

/// reliability 1, 2
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_an_upload_goes_to_the_cloud() {
    for fault in [None, Some(Fault::StoredThenReset), Some(Fault::StoredButError)] {
        let Some(rig) = Rig::with_cloud(SUITE, QUICK).await else { return };
        if let Some(fault) = fault {
            rig.cloud().fault(fault, uploads());
        }
        let story = Story {
            prepare: async |_: &Process, _: &str| String::new(),
            act: async |process: &Process, session: &str, _: &str| {
                rig.ledger.upload(&process.url, session, 300_000).await;
            },
            again: async |_: &Process, _: &str, _: &str| {},
        };
        assert!(kill_at_every_point(&rig, story).await >= 5);
    }
}

/// It was complete and waited for the cloud; nobody was answered. It is a recording all the same, once, also when the
/// client sends it again. What was not complete is nothing. reliability 1, 4
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_waits_for_the_cloud() {
    let Some(rig) = Rig::with_cloud(SUITE, &[QUICK, &[("supabase.patience", "1min")]].concat()).await else {
        return;
    };
    let spooled = |prefix: &str| {
        let names = std::fs::read_dir(rig.root().join(".spool")).unwrap();
        names.filter(|name| name.as_ref().unwrap().file_name().to_string_lossy().starts_with(prefix)).count()
    };
    for (n, len) in [3000, 300_000].into_iter().enumerate() {
        let session = format!("waits-{n}");
        let bytes = rig.ledger.bytes(len);
        let key = [("Idempotency-Key", "once")];
        let process = rig.start();
        rig.cloud_answers(&process).await;
        rig.cloud().fault(Fault::BlackHole, uploads());
        let mut half = raw_client::RawClient::connect(&process.url).await;
        half.send(raw_client::upload_head("half", "Content-Length: 1000000\r\n")).await;
        half.send(raw_client::RawForm::new().file(&bytes).unfinished()).await;
        let url = process.url.clone();
        let client = rig.ledger.upload_with(&url, &session, bytes.clone(), &key);
        let kill = async {
            eventually("it waits for the cloud", async || spooled("note-") == 1).await;
            process.kill();
        };
        tokio::join!(client, kill);
        rig.cloud().clear_faults();
        // Once more, while it is being taken up.
        assert!(start_under(&rig, &Plan::nth(Action::KillBefore, 1).of("flushes", "spool")).await);
        let process = rig.start();
        let list: serde_json::Value =
            rig.ledger.json(&process.url, &format!("/recordings/{session}/list")).await;
        assert_eq!(list["total_count"], 1, "{list}");
        assert_eq!(list["recordings"][0]["file_size"], len, "{list}");
        let (status, answer) =
            rig.ledger.upload_with(&process.url, &session, bytes, &key).await.expect("an answer comes");
        assert_eq!((status, &answer["file_path"]), (200, &list["recordings"][0]["file_path"]), "{answer}");
        eventually("the spool is empty", async || spooled("") == 0).await;
        rig.ledger.drains_into(rig.cloud()).await;
        rig.ledger.check_everything(&process.url, &rig.root()).await;
        process.stop_in_order();
    }
}

/// Everything that was kept while the cloud was away, however often the gateway was killed, gets there once.
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_syncs() {
    let settings = [QUICK, &[("supabase.patience", "0s")]].concat();
    for fault in [None, Some(Fault::StoredThenReset)] {
        let Some(rig) = Rig::with_cloud(SUITE, &settings).await else { return };
        if let Some(fault) = fault {
            rig.cloud().fault(fault, uploads());
        }
        let story = Story {
            prepare: async |process: &Process, session: &str| {
                rig.cloud().stop().await;
                let (status, answer) = rig.ledger.upload(&process.url, session, 3000).await.unwrap();
                assert_eq!((status, &answer["storage_type"]), (200, &"local".into()), "{answer}");
                answer["file_path"].as_str().unwrap().to_owned()
            },
            act: async |_: &Process, _: &str, path: &str| {
                rig.cloud().restart_on_same_port().await;
                let file = rig.root().join(path);
                eventually("it is synced or killed", async || !file.exists() || rig.faults.hit()).await;
            },
            again: async |_: &Process, _: &str, _: &str| {},
        };
        assert!(kill_at_every_point(&rig, story).await >= 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_deletes() {
    for cloud in [false, true] {
        let rig = if cloud { Rig::with_cloud(SUITE, QUICK).await } else { Rig::local(SUITE, QUICK) };
        let Some(rig) = rig else { return };
        let story = Story {
            prepare: async |process: &Process, session: &str| {
                let (status, answer) = rig.ledger.upload(&process.url, session, 3000).await.unwrap();
                assert_eq!(status, 200, "{answer}");
                answer["file_path"].as_str().unwrap().to_owned()
            },
            act: async |process: &Process, _: &str, path: &str| {
                rig.ledger.delete(&process.url, path).await;
            },
            again: async |_: &Process, _: &str, _: &str| {},
        };
        assert!(kill_at_every_point(&rig, story).await >= 3);
    }
}

/// The answer was 202 and the bucket still has it: after any kill it goes from there.
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_deletion_waits_for_the_cloud() {
    let Some(rig) = Rig::with_cloud(SUITE, QUICK).await else { return };
    let story = Story {
        prepare: async |process: &Process, session: &str| {
            let (status, answer) = rig.ledger.upload(&process.url, session, 3000).await.unwrap();
            assert_eq!((status, &answer["storage_type"]), (200, &"supabase".into()), "{answer}");
            rig.cloud().fault(Fault::internal_error(), deletions());
            answer["file_path"].as_str().unwrap().to_owned()
        },
        act: async |process: &Process, _: &str, path: &str| {
            rig.ledger.delete(&process.url, path).await;
            rig.cloud().clear_faults();
            eventually("it is gone or killed", async || {
                rig.faults.hit()
                    || !rig.cloud().keys(crate::support::cloud::BUCKET).contains(&path.to_owned())
            })
            .await;
        },
        again: async |_: &Process, _: &str, _: &str| {},
    };
    assert!(kill_at_every_point(&rig, story).await >= 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_deletes_a_session() {
    for cloud in [false, true] {
        let rig = if cloud { Rig::with_cloud(SUITE, QUICK).await } else { Rig::local(SUITE, QUICK) };
        let Some(rig) = rig else { return };
        let story = Story {
            prepare: async |process: &Process, session: &str| {
                for _ in 0..2 {
                    let (status, answer) = rig.ledger.upload(&process.url, session, 3000).await.unwrap();
                    assert_eq!(status, 200, "{answer}");
                }
                String::new()
            },
            act: async |process: &Process, session: &str, _: &str| {
                rig.ledger.delete_session(&process.url, session).await;
            },
            again: async |_: &Process, _: &str, _: &str| {},
        };
        assert!(kill_at_every_point(&rig, story).await >= 5);
    }
}

/// Starts it under a plan that is in force from the first moment; says whether it was killed. It has a moment after it
/// listens, for what it does by itself then.
async fn start_under(rig: &Rig, plan: &Plan) -> bool {
    rig.faults.arm(plan);
    let killed = match Process::run(rig.command()) {
        Err((_, log)) => {
            assert!(rig.faults.hit(), "it ended by itself: {log:?}");
            true
        }
        Ok(mut process) => {
            let begun = Instant::now();
            while !process.was_killed() && begun.elapsed() < 2 * AFTER_THE_ANSWER {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            process.was_killed()
        }
    };
    rig.faults.disarm();
    killed
}

/// The first start of all makes directories and catalogue.
#[tokio::test(flavor = "multi_thread")]
async fn killed_in_its_first_start() {
    let Some(rig) = Rig::local(SUITE, QUICK) else { return };
    start_under(&rig, &Plan::nth(Action::Count, 1)).await;
    let (points, mut kills) = (points(&rig.faults.log()), 0);
    for plan in &points {
        let Some(rig) = Rig::local(SUITE, QUICK) else { return };
        kills += usize::from(start_under(&rig, plan).await);
        let process = rig.start();
        let (status, answer) = rig.ledger.upload(&process.url, "first", 1000).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        rig.crash_and_check(process).await.stop_in_order();
    }
    println!("{kills} kills at {} points", points.len());
    assert!(kills >= 10 && kills * 4 >= points.len() * 3, "{kills} of {} points", points.len());
}

/// A start finds an upload that was cut off, one that waits for the cloud, and a deletion that waits for it. reliability 1
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_recovers() {
    let settings = [QUICK, &[("supabase.patience", "0s")]].concat();
    let Some(rig) = Rig::with_cloud(SUITE, &settings).await else { return };
    let leave_work = async || {
        let process = rig.start();
        rig.cloud_answers(&process).await;
        let mut paths = Vec::new();
        rig.cloud().stop().await;
        for _ in 0..2 {
            let (status, answer) = rig.ledger.upload(&process.url, "left", 3000).await.unwrap();
            assert_eq!(status, 200, "{answer}");
            paths.push(answer["file_path"].as_str().unwrap().to_owned());
        }
        let (status, answer) = rig.ledger.delete(&process.url, &paths[0]).await.unwrap();
        assert_eq!(status, 202, "{answer}");
        process.kill();
        std::fs::write(rig.root().join(".spool/form-cut"), "half an upload").unwrap();
        rig.cloud().restart_on_same_port().await;
    };
    leave_work().await;
    start_under(&rig, &Plan::nth(Action::Count, 1)).await;
    let (points, mut kills) = (points(&rig.faults.log()), 0);
    for plan in &points {
        leave_work().await;
        kills += usize::from(start_under(&rig, plan).await);
        let process = rig.start();
        rig.cloud_answers(&process).await;
        rig.ledger.check(&process.url, &rig.root()).await;
        rig.ledger.drains_into(rig.cloud()).await;
    }
    println!("{kills} kills at {} points", points.len());
    assert!(kills >= 10 && kills * 4 >= points.len() * 3, "{kills} of {} points", points.len());
}

/// The cloud while the gateway is under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cloud {
    None,
    Well,
    Away,
    LosesAnswers,
}

/// Pseudo-random numbers that a seed makes again (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }
}

/// Some clients upload and delete until the gateway is gone.
async fn load(rig: &Rig, process: &Process, round: usize, dice: &mut Dice) {
    let clients = (0..4).map(|client| {
        let (mut dice, url) = (Dice(dice.below(1 << 30) as u64 + 1), &process.url);
        async move {
            let mine = format!("client-{client}-");
            for _ in 0..25 {
                let session = format!("{mine}{}", round - dice.below(round.min(3) + 1));
                let kept: Vec<_> =
                    rig.ledger.kept().into_iter().filter(|path| path.starts_with(&mine)).collect();
                let went_on = match dice.below(10) {
                    0..=5 => rig.ledger.upload(url, &session, 100 + dice.below(200_000)).await.is_some(),
                    6..=8 if !kept.is_empty() => {
                        rig.ledger.delete(url, &kept[dice.below(kept.len())]).await.is_some()
                    }
                    9 => rig.ledger.delete_session(url, &session).await.is_some(),
                    _ => rig.ledger.status(url, &format!("/recordings/{session}/list")).await.is_some(),
                };
                if !went_on {
                    return;
                }
            }
        }
    });
    futures_util::future::join_all(clients).await;
}

async fn random_kills(cloud: Cloud, rounds: usize) {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = std::env::var("TESTS_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| u64::from(now()));
    println!("{cloud:?}: TESTS_SEED={seed}");
    let mut dice = Dice(seed.max(1));
    let rig = match cloud {
        Cloud::None => Rig::local(SUITE, QUICK),
        _ => Rig::with_cloud(SUITE, QUICK).await,
    };
    let Some(rig) = rig else { return };
    let (mut process, mut kills, mut kept_some) = (rig.start(), 0, false);
    rig.cloud_answers(&process).await;
    for round in 0..rounds {
        match cloud {
            Cloud::None | Cloud::Well => {}
            Cloud::Away => rig.cloud().stop().await,
            Cloud::LosesAnswers => {
                rig.cloud().fault(Fault::StoredThenReset, uploads().skip(dice.below(3) as u32).times(3));
                rig.cloud().fault(Fault::StoredThenReset, deletions().skip(dice.below(2) as u32).times(1));
            }
        }
        let action = [Action::KillBefore, Action::KillAfter][dice.below(2)];
        rig.faults.arm(&Plan::nth(action, 1 + dice.below(120)));
        load(&rig, &process, round, &mut dice).await;
        match cloud {
            Cloud::None | Cloud::Well => {}
            Cloud::Away => rig.cloud().restart_on_same_port().await,
            Cloud::LosesAnswers => rig.cloud().clear_faults(),
        }
        kills += usize::from(process.was_killed());
        process = rig.crash_and_check(process).await;
        kept_some |= !rig.ledger.kept().is_empty();
    }
    println!("{kills} kills under load");
    // A busy machine does less in a round, and may not get as far as the operation that kills.
    assert!(kills * 3 >= rounds, "{kills} of {rounds} kills came while it worked");
    rig.ledger.check_everything(&process.url, &rig.root()).await;
    if let Some(cloud) = &rig.cloud {
        rig.ledger.drains_into(cloud).await;
    }
    assert!(kept_some, "nothing was ever kept");
    process.stop_in_order();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_under_load_without_a_cloud() {
    random_kills(Cloud::None, 30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_under_load_with_a_cloud() {
    random_kills(Cloud::Well, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_under_load_while_the_cloud_is_away() {
    random_kills(Cloud::Away, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_under_load_while_the_cloud_loses_answers() {
    random_kills(Cloud::LosesAnswers, 20).await;
}
