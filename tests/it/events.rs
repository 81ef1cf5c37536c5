//! Server-sent events: what is told, when, to whom; that a reader who was away is told to look again, one who does not
//! read harms nobody, and the stop ends them all.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::Value;

use crate::support::cloud::dripping_form;
use crate::support::fake_supabase::FakeSupabase;
use crate::support::gateway::{Gateway, within};
use crate::support::media::webm;
use crate::support::{PATIENCE, eventually};

/// One event as it came.
#[derive(Clone, Debug, Default)]
struct Heard {
    name: String,
    id: String,
    data: Value,
}

struct Reader {
    bytes: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    text: String,
    /// The id that stands before the first event.
    id: String,
}

impl Reader {
    async fn open(gateway: &Gateway, query: &str, last: Option<&str>) -> Self {
        let mut request = gateway.request("GET", &format!("/events{query}"));
        if let Some(id) = last {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let header = |name: &str| response.headers()[name].to_str().unwrap();
        assert_eq!(header("content-type"), "text/event-stream");
        assert_eq!((header("cache-control"), header("x-accel-buffering")), ("no-store", "no"));
        Self { bytes: Box::pin(response.bytes_stream()), text: String::new(), id: String::new() }
    }

    /// The next block; `None` at the end of the stream.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(block);
            }
            let more = within("an event", self.bytes.next()).await?;
            let Ok(more) = more else { return None };
            self.text.push_str(std::str::from_utf8(&more).unwrap());
        }
    }

    async fn next(&mut self) -> Option<Heard> {
        // Comments come in any case, so waiting for bytes alone would wait for ever.
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "nothing is told");
            let block = self.block().await?;
            let mut heard = Heard::default();
            for line in block.lines() {
                match line.split_once(": ") {
                    Some(("event", name)) => heard.name = name.to_owned(),
                    Some(("id", id)) => heard.id = id.to_owned(),
                    Some(("data", data)) => heard.data = serde_json::from_str(data).unwrap(),
                    Some(("retry", "2000")) => {}
                    _ => assert!(line.starts_with(':'), "what is {line}?"),
                }
            }
            if !heard.id.is_empty() {
                self.id = heard.id.clone();
            }
            if !heard.name.is_empty() {
                return Some(heard);
            }
        }
    }

    /// Reads on until it was told so; returns all it heard on the way.
    async fn until(&mut self, reached: impl Fn(&Heard) -> bool) -> Vec<Heard> {
        let mut all = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "not told; heard {all:#?}");
            let heard = self.next().await.unwrap_or_else(|| panic!("it ended; heard {all:#?}"));
            all.push(heard);
            if all.last().is_some_and(&reached) {
                return all;
            }
        }
    }
}

fn is(name: &'static str, state: &'static str) -> impl Fn(&Heard) -> bool {
    move |heard| heard.name == name && heard.data["state"] == state
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_is_told_of_from_its_first_byte_to_the_cloud_and_its_end() {
    let cloud = FakeSupabase::start().await;
    let gateway = Gateway::with_cloud(&cloud).await;
    let mut reader = Reader::open(&gateway, "", None).await;
    cloud.stop().await;
    let (_, answer) = gateway.upload("s", webm(5000, 1)).await;
    let filename = answer["filename"].as_str().unwrap();
    let upload = reader.until(is("upload", "kept")).await;
    let first = upload.iter().find(|heard| heard.name == "upload").unwrap();
    assert!(is("upload", "begun")(first), "{upload:#?}");
    let kept = &upload.last().unwrap().data;
    assert_eq!((kept["filename"].as_str(), kept["storage_type"].as_str()), (Some(filename), Some("local")));
    let tried = reader.until(is("sync", "waiting")).await;
    // The first try may well begin before the upload is told of as kept: each tells for itself.
    assert!(upload.iter().chain(&tried).any(is("sync", "running")), "{upload:#?} {tried:#?}");
    assert!(tried.last().unwrap().data["error"].is_string(), "{tried:#?}");

    cloud.restart_on_same_port().await;
    let done = reader.until(is("sync", "done")).await;
    assert_eq!(done.last().unwrap().data["filename"], filename);
    let listed = gateway.get_json("/recordings/s/list").await;
    assert_eq!(listed["recordings"][0]["storage_type"], "supabase", "told after it is so");
    let job = reader.until(is("job", "done")).await;
    assert_eq!(job.last().unwrap().data["kind"], "sync");

    let path = answer["file_path"].as_str().unwrap();
    gateway.delete(&format!("/recordings/{path}")).await;
    let gone = reader.until(is("deletion", "done")).await;
    let first = gone.iter().find(|heard| heard.name == "deletion").unwrap();
    assert!(is("deletion", "pending")(first), "gone from the lists first: {gone:#?}");

    let all = [upload, tried, done, job, gone].concat();
    let number = |heard: &Heard| heard.id.rsplit('-').next().unwrap().parse::<u64>().unwrap();
    assert!(all.windows(2).all(|pair| number(&pair[0]) < number(&pair[1])), "ids only grow");
    let key = cloud.service_key();
    assert!(all.iter().all(|heard| !heard.data.to_string().contains(&key)), "the key is nobody's to read");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_is_told_as_failed_and_its_way_once_a_second() {
    let gateway = Gateway::local().await;
    let mut reader = Reader::open(&gateway, "?session_id=slow", None).await;
    let (pieces, form) = dripping_form();
    let request = gateway.request("POST", "/recordings/upload/slow").multipart(form).send();
    let begun = Instant::now();
    let sending = tokio::spawn(request);
    gateway.upload("another", webm(1000, 1)).await;
    let dripping = tokio::spawn(async move {
        let head = std::iter::once(webm(300_000, 1)).chain(std::iter::repeat(vec![0; 300_000]));
        for piece in head {
            if pieces.send(piece).is_err() {
                // The request was broken off. Had this ended earlier, the form would have ended in order.
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut heard = reader.until(is("upload", "receiving")).await;
    heard.extend(reader.until(is("upload", "receiving")).await);
    sending.abort();
    heard.extend(reader.until(is("upload", "failed")).await);
    let took = begun.elapsed();
    let told = heard.iter().filter(|heard| is("upload", "receiving")(heard)).count();
    assert!((2..=took.as_secs() as usize).contains(&told), "{told} in {took:?}: {heard:#?}");
    assert!(heard.iter().all(|heard| heard.data["session_id"] == "slow"), "only of its session: {heard:#?}");
    dripping.await.unwrap();
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_is_told_to_look_again_if_something_happened() {
    let gateway = Gateway::local().await;
    let mut reader = Reader::open(&gateway, "", None).await;
    reader.block().await.unwrap();
    gateway.upload("s", webm(1000, 1)).await;
    reader.until(is("upload", "kept")).await;
    let id = reader.id.clone();
    drop(reader);

    let mut reader = Reader::open(&gateway, "", Some(&id)).await;
    assert!(reader.block().await.unwrap().contains(&id), "nothing was missed: it goes on");
    drop(reader);
    eventually("nobody listens", async || {
        // What happens unheard counts too.
        gateway.upload("s", webm(1000, 2)).await.0 == 200
    })
    .await;
    for missed in [id.as_str(), "1-1", "nonsense"] {
        let mut reader = Reader::open(&gateway, "", Some(missed)).await;
        assert_eq!(reader.next().await.unwrap().name, "reset", "{missed}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stop_ends_every_reader_at_once() {
    let gateway = Gateway::local().await;
    let mut readers = Vec::new();
    for _ in 0..3 {
        let mut reader = Reader::open(&gateway, "", None).await;
        reader.block().await.unwrap();
        readers.push(reader);
    }
    let asked = Instant::now();
    gateway.stop().await;
    assert!(asked.elapsed() < Duration::from_secs(3), "it waited {:?} for its readers", asked.elapsed());
    for reader in &mut readers {
        assert!(reader.next().await.is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn places_for_readers_are_limited_and_come_back() {
    let gateway = Gateway::local().await;
    let mut held: Vec<_> = (0..256).map(|_| gateway.services.listen(None, None).unwrap()).collect();
    let response = gateway.get("/events").await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(response.json::<Value>().await.unwrap()["code"], "too_many_listeners");
    held.pop();
    let reader = Reader::open(&gateway, "", None).await;
    assert_eq!(gateway.get("/events").await.status(), 503);
    drop(reader);
    eventually("its place is free again", async || gateway.services.listen(None, None).is_ok()).await;
    gateway.stop().await;
}
