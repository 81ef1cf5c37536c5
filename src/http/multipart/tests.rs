//! The form reader against the rules one by one, against itself under every split, against multer, and against abuse.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, stream};
use proptest::prelude::*;

use super::*;

/// A part with its data in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    name: String,
    filename: Option<String>,
    content_type: Option<String>,
    data: Vec<u8>,
}

fn part(name: &str, data: &[u8]) -> Part {
    Part { name: name.into(), filename: None, content_type: None, data: data.into() }
}

fn reader(
    frames: Vec<Bytes>,
    limits: Limits,
) -> FormReader<impl Stream<Item = Result<Bytes, Infallible>> + Unpin> {
    FormReader::new(stream::iter(frames.into_iter().map(Ok)), "B", limits)
}

fn form_error<E: std::fmt::Debug>(error: ReadError<E>) -> FormError {
    match error {
        ReadError::Form(error) => error,
        ReadError::Stream(error) => panic!("the stream failed: {error:?}"),
    }
}

/// Reads a whole form; also checks what must hold for every input: never an empty slice, never more work than linear.
fn read_with(frames: Vec<Bytes>, boundary: &str, limits: Limits) -> Result<Vec<Part>, FormError> {
    let frame_count = frames.len() as u64;
    let length: u64 = frames.iter().map(|frame| frame.len() as u64).sum();
    let frames = stream::iter(frames.into_iter().map(Ok::<_, Infallible>));
    let mut form = FormReader::new(frames, boundary, limits);
    let outcome = async {
        let mut parts = Vec::new();
        while let Some(head) = form.next_part().await.map_err(form_error)? {
            let mut data = Vec::new();
            while let Some(chunk) = form.chunk().await.map_err(form_error)? {
                assert!(!chunk.is_empty(), "an empty chunk");
                data.extend_from_slice(&chunk);
            }
            parts.push(Part {
                name: head.name,
                filename: head.filename,
                content_type: head.content_type,
                data,
            });
        }
        Ok(parts)
    }
    .now_or_never()
    .expect("the stream never waits");
    assert!(form.searched <= 2 * length + frame_count, "searched {} of {length} bytes", form.searched);
    if outcome.is_ok() {
        assert_eq!(form.bytes_read(), length, "a whole form is read to its end");
    }
    outcome
}

fn read(body: &[u8]) -> Result<Vec<Part>, FormError> {
    read_with(vec![Bytes::copy_from_slice(body)], "B", Limits::default())
}

/// A form of one part whose header block is `head`, with the data `x`.
fn head_only(head: &str) -> Result<Part, FormError> {
    read(format!("--B\r\n{head}\r\n\r\nx\r\n--B--\r\n").as_bytes()).map(|mut parts| parts.remove(0))
}

fn disposition(params: &str) -> Result<Part, FormError> {
    head_only(&format!("Content-Disposition: form-data; {params}"))
}

fn filename(params: &str) -> Option<String> {
    disposition(&format!("name=\"f\"; {params}")).expect("a valid part").filename
}

const TWO_PARTS: &[u8] =
    b"--B\r\nContent-Disposition: form-data; name=\"recording\"; filename=\"a.webm\"\r\n\
    Content-Type: video/webm\r\n\r\n\r\n--\r\n-\r\r\n--A\r\n--b data\r\n--B\r\n\
    content-disposition:form-data;name=recording_type\r\n\r\nsession\r\n--B--\r\n";

fn two_parts() -> Vec<Part> {
    vec![
        Part {
            name: "recording".into(),
            filename: Some("a.webm".into()),
            content_type: Some("video/webm".into()),
            data: b"\r\n--\r\n-\r\r\n--A\r\n--b data".into(),
        },
        part("recording_type", b"session"),
    ]
}

#[test]
fn parts_come_in_order_with_their_data() {
    assert_eq!(read(TWO_PARTS), Ok(two_parts()));
}

#[test]
fn every_split_into_two_and_into_single_bytes_gives_the_same_parts() {
    let body = Bytes::from_static(TWO_PARTS);
    for at in 0..=body.len() {
        let frames = vec![body.slice(..at), Bytes::new(), body.slice(at..)];
        assert_eq!(read_with(frames, "B", Limits::default()), Ok(two_parts()), "split at {at}");
    }
    for size in 1..20 {
        let frames = body.chunks(size).map(Bytes::copy_from_slice).collect();
        assert_eq!(read_with(frames, "B", Limits::default()), Ok(two_parts()), "frames of {size}");
    }
}

#[test]
fn a_body_cut_anywhere_is_an_error() {
    // Without its last line end the form is whole already.
    for end in 0..TWO_PARTS.len() - 2 {
        let error = read(&TWO_PARTS[..end]).expect_err("a cut form is no form");
        let expected = if end < 3 { FormError::BoundaryNotFound } else { FormError::Truncated };
        assert_eq!(error, expected, "cut at {end}");
    }
    assert_eq!(read(&TWO_PARTS[..TWO_PARTS.len() - 2]), Ok(two_parts()));
}

#[test]
fn data_is_handed_on_without_copying() {
    let mut body = b"--B\r\nContent-Disposition: form-data; name=\"f\"\r\n\r\n".to_vec();
    let start = body.len();
    body.extend_from_slice(&[7; 100_000]);
    body.extend_from_slice(b"\r\n--B--\r\n");
    let body = Bytes::from(body);
    let mut form = reader(vec![body.clone()], Limits::default());
    form.next_part().now_or_never().unwrap().unwrap().unwrap();
    let data = form.chunk().now_or_never().unwrap().unwrap().unwrap();
    assert_eq!(data.len(), 100_000);
    assert_eq!(data.as_ptr(), body[start..].as_ptr());
}

#[test]
fn a_used_up_frame_is_let_go() {
    let frame = Bytes::from(b"--B\r\nContent-Disposition: form-data; name=\"f\"\r\n\r\nabc\r\n--".to_vec());
    let mut form = reader(vec![frame.clone()], Limits::default());
    form.next_part().now_or_never().unwrap().unwrap().unwrap();
    let data = form.chunk().now_or_never().unwrap().unwrap().unwrap();
    assert_eq!(data, "abc");
    drop(data);
    assert!(frame.is_unique(), "the reader keeps a frame of which it needs only a count");
}

#[test]
fn unread_data_is_skipped_and_chunks_end_at_the_part() {
    let mut form = reader(vec![Bytes::from_static(TWO_PARTS)], Limits::default());
    assert!(form.chunk().now_or_never().unwrap().unwrap().is_none(), "before the first part");
    assert_eq!(form.next_part().now_or_never().unwrap().unwrap().unwrap().name, "recording");
    assert_eq!(form.next_part().now_or_never().unwrap().unwrap().unwrap().name, "recording_type");
    assert_eq!(form.chunk().now_or_never().unwrap().unwrap().unwrap(), "session");
    for _ in 0..3 {
        assert!(form.chunk().now_or_never().unwrap().unwrap().is_none());
    }
    for _ in 0..2 {
        assert!(form.next_part().now_or_never().unwrap().unwrap().is_none());
    }
}

#[test]
fn the_length_of_the_last_part_is_known_beforehand() {
    let mut form = reader(vec![Bytes::from_static(TWO_PARTS)], Limits::default());
    form.next_part().now_or_never().unwrap().unwrap().unwrap();
    form.next_part().now_or_never().unwrap().unwrap().unwrap();
    let total = TWO_PARTS.len() as u64;
    assert_eq!(form.expected_part_len(total), Some(7));
    form.chunk().now_or_never().unwrap().unwrap().unwrap();
    assert_eq!(form.expected_part_len(total), Some(7), "also while it is being read");
    assert_eq!(form.expected_part_len(10), None);
}

#[test]
fn a_failed_stream_is_told_apart_and_ends_everything() {
    let cut = memchr::memmem::find(TWO_PARTS, b"--A").unwrap();
    let frames = vec![Ok(Bytes::from_static(&TWO_PARTS[..cut])), Err("gone")];
    let mut form = FormReader::new(stream::iter(frames), "B", Limits::default());
    form.next_part().now_or_never().unwrap().unwrap().unwrap();
    let error = loop {
        match form.chunk().now_or_never().unwrap() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a broken part came to an end"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ReadError::Stream("gone")));
    let again = form.next_part().now_or_never().unwrap().unwrap_err();
    assert!(matches!(again, ReadError::Form(FormError::AlreadyFailed)));
    let again = form.chunk().now_or_never().unwrap().unwrap_err();
    assert!(matches!(again, ReadError::Form(FormError::AlreadyFailed)));
}

/// Waits once before each frame.
struct Hesitant(Vec<Bytes>, bool);

impl Stream for Hesitant {
    type Item = Result<Bytes, Infallible>;
    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.1 = !self.1;
        match self.1 {
            true => Poll::Pending,
            false => Poll::Ready(self.0.pop().map(Ok)),
        }
    }
}

#[test]
fn reading_can_be_dropped_and_taken_up_again() {
    let frames = TWO_PARTS.chunks(3).rev().map(Bytes::copy_from_slice).collect();
    let mut form = FormReader::new(Hesitant(frames, false), "B", Limits::default());
    let mut parts = Vec::new();
    let mut dropped = 0;
    'form: loop {
        let head = loop {
            match form.next_part().now_or_never() {
                Some(head) => break head.unwrap(),
                None => dropped += 1,
            }
        };
        let Some(head) = head else { break 'form };
        let mut data = Vec::new();
        loop {
            match form.chunk().now_or_never() {
                Some(Ok(Some(chunk))) => data.extend_from_slice(&chunk),
                Some(Ok(None)) => break,
                Some(Err(error)) => panic!("{error}"),
                None => dropped += 1,
            }
        }
        parts.push(Part { name: head.name, filename: head.filename, content_type: head.content_type, data });
    }
    assert_eq!(parts, two_parts());
    assert!(dropped > 50, "each frame was waited for in a call that was dropped");
}

// --- the lines around the parts

#[test]
fn preamble_padding_and_epilogue_are_skipped_within_bounds() {
    let body = b"\r\n--C and --B here\r\n--B \t \r\nContent-Disposition: form-data; name=\"f\"\r\n\r\nx\r\n--B-- \t\r\nbye\r\n--B\r\n";
    assert_eq!(read(body), Ok(vec![part("f", b"x")]));

    let form = |preamble: usize, epilogue: usize| {
        let mut body = vec![b'p'; preamble];
        body.extend_from_slice(
            b"\r\n--B\r\nContent-Disposition: form-data; name=\"f\"\r\n\r\nx\r\n--B--\r\n",
        );
        body.resize(body.len() + epilogue, b'e');
        read(&body)
    };
    assert!(form(4096, 4096).is_ok());
    assert_eq!(form(4097, 0), Err(FormError::PreambleTooLong { max: 4096 }));
    assert_eq!(form(0, 4097), Err(FormError::EpilogueTooLong { max: 4096 }));
}

#[test]
fn a_form_may_be_empty_and_so_may_parts() {
    assert_eq!(read(b"--B--\r\n"), Ok(vec![]));
    assert_eq!(read(b"--B--"), Ok(vec![]));
    let head = "Content-Disposition: form-data; name=\"f\"";
    let usual = format!("--B\r\n{head}\r\n\r\n\r\n--B--\r\n");
    assert_eq!(read(usual.as_bytes()), Ok(vec![part("f", b"")]));
    // RFC 2046: a part may end with its headers, whose blank line then belongs to the delimiter.
    let bare = format!("--B\r\n{head}\r\n\r\n--B--\r\n");
    assert_eq!(read(bare.as_bytes()), Ok(vec![part("f", b"")]));
}

#[test]
fn data_that_begins_like_a_boundary_is_kept_whole() {
    let form = |data: &str| {
        let body = format!("--BB\r\nContent-Disposition: form-data; name=\"f\"\r\n\r\n{data}\r\n--BB--\r\n");
        let frames = body.as_bytes().chunks(1).map(Bytes::copy_from_slice).collect();
        read_with(frames, "BB", Limits::default())
    };
    for data in ["--B", "-", "--", "--B\r", "\r\n--B", "\r\n--B\r\n--B", "\r\r\n--B", "--A", "\n--BB", "BB--"]
    {
        assert_eq!(form(data), Ok(vec![part("f", data.as_bytes())]), "{data:?}");
    }
}

#[test]
fn junk_behind_a_boundary_is_refused() {
    let part = "Content-Disposition: form-data; name=\"f\"\r\n\r\nx";
    for body in [
        format!("--BX\r\n{part}\r\n--B--\r\n"),
        format!("--B\n{part}\r\n--B--\r\n"),
        format!("--B\r\n{part}\r\n--BX\r\n--B--\r\n"),
        format!("--B\r\n{part}\r\n--B-\r\n"),
        format!("--B\r\n{part}\r\n--B--X"),
        format!("--B\r\n{part}\r\n--B--\n"),
        format!("--B\r\n{part}\r\n--B--\rX\r\n"),
        format!("--B{}\r\n{part}\r\n--B--\r\n", " ".repeat(300)),
    ] {
        assert_eq!(read(body.as_bytes()), Err(FormError::JunkAfterBoundary), "{body:?}");
    }
    assert_eq!(read(b""), Err(FormError::BoundaryNotFound));
    assert_eq!(read(b"--C--\r\n"), Err(FormError::BoundaryNotFound));
}

// --- part headers

#[test]
fn header_lines_follow_the_rules() {
    let good = "Content-Disposition: form-data; name=\"f\"";
    let cases = [
        ("X-No-Colon", FormError::MalformedHeader),
        ("Bad Name: x", FormError::MalformedHeader),
        ("Space-Before : x", FormError::MalformedHeader),
        (": x", FormError::MalformedHeader),
        ("X: a\0b", FormError::MalformedHeader),
        ("X: a\rb", FormError::MalformedHeader),
        ("X: a\nY: b", FormError::MalformedHeader),
        ("X: a\r\n folded", FormError::FoldedHeader),
        ("X: a\r\n\tfolded", FormError::FoldedHeader),
        ("Content-Transfer-Encoding: base64", FormError::TransferEncoded),
        ("Content-Disposition: form-data; name=\"g\"", FormError::DispositionMissing),
    ];
    for (line, error) in cases {
        assert_eq!(head_only(&format!("{good}\r\n{line}")), Err(error), "{line:?}");
    }
    for line in ["X:", "Content-Transfer-Encoding: Binary", "X: \u{e9}", "x-y!#:\t v \t"] {
        assert!(head_only(&format!("{good}\r\n{line}")).is_ok(), "{line:?}");
    }
    let part = head_only(&format!("{good}\r\ncontent-TYPE: \t audio/webm;codecs=opus "));
    assert_eq!(part.unwrap().content_type.as_deref(), Some("audio/webm;codecs=opus"));
    assert_eq!(head_only("X: a"), Err(FormError::DispositionMissing));
    assert_eq!(read(b"--B\r\n\r\nx\r\n--B--\r\n"), Err(FormError::DispositionMissing));
    assert_eq!(read(b"--B\r\n--B--\r\n"), Err(FormError::MalformedHeader));
}

#[test]
fn names_are_required_and_utf8() {
    assert_eq!(disposition("name=plain").unwrap().name, "plain");
    assert_eq!(disposition("NAME=\"\"").unwrap().name, "");
    assert_eq!(disposition("name=\"größe; \u{1f3a4}\" ; ").unwrap().name, "größe; \u{1f3a4}");
    assert_eq!(disposition("name=\"a%22b%0D%0Ac%0a%41%\"").unwrap().name, "a\"b\r\nc\n%41%");
    for (params, error) in [
        ("filename=\"a\"", FormError::DispositionMissing),
        ("name=\"a\"; name=\"b\"", FormError::MalformedDisposition),
        ("name=\"a", FormError::MalformedDisposition),
        ("name=", FormError::MalformedDisposition),
        ("name", FormError::MalformedDisposition),
        ("name=\"a\" b", FormError::MalformedDisposition),
        ("name=a b", FormError::MalformedDisposition),
        ("na me=a", FormError::MalformedDisposition),
    ] {
        assert_eq!(disposition(params), Err(error), "{params:?}");
    }
    assert_eq!(
        head_only("Content-Disposition: attachment; name=\"f\""),
        Err(FormError::MalformedDisposition)
    );
    let broken = b"--B\r\nContent-Disposition: form-data; name=\"\xff\"\r\n\r\nx\r\n--B--\r\n";
    assert_eq!(read(broken), Err(FormError::NameNotUtf8));
}

#[test]
fn file_names_come_as_the_client_meant_them() {
    let cases = [
        (r#"filename="""#, ""),
        (r#"filename="../../etc/passwd""#, "../../etc/passwd"),
        (r#"filename="a %22b%22.webm""#, "a \"b\".webm"),
        (r#"filename="a \"b\".webm""#, "a \"b\".webm"),
        (r#"filename="C:\videos\talk.webm""#, r"C:\videos\talk.webm"),
        (r#"filename="a\\b""#, r"a\b"),
        (r#"filename="ends in\""#, r"ends in\"),
        (r#"filename="ends in\\""#, r"ends in\"),
        (r#"filename="a;b=c""#, "a;b=c"),
        ("filename=talk.webm", "talk.webm"),
        ("filename=größe.webm", "größe.webm"),
        ("filename=\"a\"; filename*=UTF-8''na%C3%AFve%20x.webm", "naïve x.webm"),
        ("filename*=utf-8'en'b; filename=\"a\"", "b"),
        ("filename*=ISO-8859-1''%E9; filename=\"a\"", "é"),
        ("filename=\"a\"; filename*=UTF-8''%FF", "a"),
        ("filename=\"a\"; filename*=UTF-8''%00", "a"),
        ("filename=\"a\"; filename*=UTF-8''%4", "a"),
        ("filename=\"a\"; filename*=UTF-8''b/c", "a"),
        ("filename=\"a\"; filename*=KOI8-R''b", "a"),
        ("filename=\"a\"; filename*=b", "a"),
    ];
    for (params, expected) in cases {
        assert_eq!(filename(params).as_deref(), Some(expected), "{params}");
    }
    assert_eq!(disposition("name=\"f\"").unwrap().filename, None);
    let long = "n".repeat(5000);
    assert_eq!(filename(&format!("filename=\"{long}\"")), Some(long));
    let broken =
        b"--B\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a\xff.webm\"\r\n\r\nx\r\n--B--\r\n";
    assert_eq!(read(broken).unwrap()[0].filename.as_deref(), Some("a\u{fffd}.webm"));
}

#[test]
fn the_boundary_is_read_exactly() {
    let seventy = "x".repeat(70);
    for (content_type, expected) in [
        ("multipart/form-data; boundary=XYZ", "XYZ"),
        ("Multipart/Form-Data;BOUNDARY=----WebKitFormBoundary7MA4YWxk", "----WebKitFormBoundary7MA4YWxk"),
        ("multipart/form-data; charset=utf-8; boundary=\"a b:/?=,(c)\"; x=y", "a b:/?=,(c)"),
        ("multipart/form-data ; boundary=\"--\";", "--"),
        (&format!("multipart/form-data; boundary={seventy}"), &seventy),
    ] {
        assert_eq!(boundary(content_type).as_deref(), Ok(expected), "{content_type}");
    }
    for (content_type, error) in [
        ("", FormError::NotAForm),
        ("multipart/mixed; boundary=X", FormError::NotAForm),
        ("application/json", FormError::NotAForm),
        ("multipart/form-data", FormError::BoundaryMissing),
        ("multipart/form-data; charset=utf-8", FormError::BoundaryMissing),
        ("multipart/form-data; boundary=", FormError::BoundaryInvalid),
        ("multipart/form-data; boundary=\"\"", FormError::BoundaryInvalid),
        ("multipart/form-data; boundary=\"a \"", FormError::BoundaryInvalid),
        ("multipart/form-data; boundary=a b", FormError::BoundaryInvalid),
        ("multipart/form-data; boundary=a=b", FormError::BoundaryInvalid),
        ("multipart/form-data; boundary=a*b", FormError::BoundaryInvalid),
        ("multipart/form-data; boundary=\"a\u{e9}\"", FormError::BoundaryInvalid),
        ("multipart/form-data; boundary=\"a\r\nb\"", FormError::BoundaryInvalid),
        ("multipart/form-data; boundary=\"open", FormError::BoundaryInvalid),
        ("multipart/form-data; boundary=a; boundary=b", FormError::BoundaryInvalid),
        (&format!("multipart/form-data; boundary={seventy}x"), FormError::BoundaryInvalid),
    ] {
        assert_eq!(boundary(content_type), Err(error), "{content_type:?}");
    }
}

// --- abuse

#[test]
fn counts_are_bounded() {
    let one = "--B\r\nContent-Disposition: form-data; name=\"f\"\r\n\r\n\r\n";
    assert_eq!(read(format!("{}--B--\r\n", one.repeat(64)).as_bytes()).unwrap().len(), 64);
    let endless = one.repeat(100_000);
    assert_eq!(read(endless.as_bytes()), Err(FormError::TooManyParts { max: 64 }));

    let lines = |count: usize| {
        head_only(&format!("Content-Disposition: form-data; name=\"f\"{}", "\r\nX: y".repeat(count)))
    };
    assert!(lines(31).is_ok());
    assert_eq!(lines(32), Err(FormError::TooManyHeaders { max: 32 }));

    let wide = |count: usize| {
        let head = format!("Content-Disposition: form-data; name=\"f\"\r\nX: {}", "y".repeat(count));
        (head.len() + 4, head_only(&head))
    };
    let (base, _) = wide(0);
    let (size, outcome) = wide(16 * 1024 - base);
    assert_eq!(size, 16 * 1024);
    assert!(outcome.is_ok());
    assert_eq!(wide(16 * 1024 - base + 1).1, Err(FormError::HeadTooLong { max: 16 * 1024 }));
}

/// Feeds a repeated frame until the reader refuses it; the answer is the error and the frames it took.
fn flood(start: &'static [u8], frame: Vec<u8>, frames: usize) -> (FormError, usize, usize) {
    let taken = std::cell::Cell::new(0);
    let frame = Bytes::from(frame);
    let endless = stream::iter(0..frames).map(|_| {
        taken.set(taken.get() + 1);
        Ok::<_, Infallible>(frame.clone())
    });
    let mut form =
        FormReader::new(stream::iter([Ok(Bytes::from_static(start))]).chain(endless), "B", Limits::default());
    let error = loop {
        match form.next_part().now_or_never().expect("the stream never waits") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("an endless form ended"),
            Err(error) => break form_error(error),
        }
    };
    (error, taken.get(), form.line.capacity())
}

#[test]
fn endless_text_outside_the_data_is_refused_at_the_cap() {
    // 300 MiB are on offer each time.
    let frame = || vec![b'a'; 64 * 1024];
    let (error, taken, kept) = flood(b"--B\r\nX: ", frame(), 4800);
    assert_eq!((error, taken), (FormError::HeadTooLong { max: 16 * 1024 }, 1));
    assert!(kept <= 64 * 1024, "kept {kept} bytes");
    let (error, taken, _) = flood(b"", frame(), 4800);
    assert_eq!((error, taken), (FormError::PreambleTooLong { max: 4096 }, 1));
    let (error, taken, _) = flood(b"--B--\r\n", frame(), 4800);
    assert_eq!((error, taken), (FormError::EpilogueTooLong { max: 4096 }, 1));
    let (error, taken, kept) = flood(b"--B", vec![b' '; 64 * 1024], 4800);
    assert_eq!((error, taken), (FormError::JunkAfterBoundary, 1));
    assert!(kept <= 1024, "kept {kept} bytes");
    let (error, taken, _) = flood(b"--B\r\n", b"X: y\r\n".to_vec(), 100_000);
    assert_eq!((error, taken), (FormError::TooManyHeaders { max: 32 }, 33));
}

#[test]
fn look_alikes_cost_linear_work_and_nothing_is_held_back_but_a_count() {
    // `read_with` asserts the searched bytes; a one-byte frame is the worst split.
    let head = b"--B\r\nContent-Disposition: form-data; name=\"f\"\r\n\r\n";
    for unit in ["\r", "\r\n", "\r\n-", "\r\n--", "--B", "\n--B", "-"] {
        let data = unit.repeat(60_000 / unit.len());
        for size in [1, 3, 5, 16 * 1024, 1 << 20] {
            let mut body = head.to_vec();
            body.extend_from_slice(b"x");
            body.extend_from_slice(data.as_bytes());
            body.extend_from_slice(b"\r\n--B--\r\n");
            let frames = body.chunks(size).map(Bytes::copy_from_slice).collect();
            let parts = read_with(frames, "B", Limits::default()).unwrap_or_else(|e| panic!("{unit:?}: {e}"));
            assert_eq!(parts[0].data[1..], *data.as_bytes(), "{unit:?} in frames of {size}");
        }
    }
}

// --- properties

/// Bytes that like to look like delimiters.
fn tricky_data() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\r".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"-".to_vec()),
        Just(b"\r\n--".to_vec()),
        Just(b"\r\n--Boundar".to_vec()),
        Just(b"--Boundary".to_vec()),
        Just(b"\r--Boundary\r\n".to_vec()),
        Just(b"\n--Boundary--\r\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(piece, 0..12)
        .prop_map(|pieces| pieces.concat())
        // What must not be in a part: the delimiter, at its beginning also without the line end.
        .prop_filter("no delimiter inside", |data| {
            memchr::memmem::find(data, b"\r\n--Boundary").is_none() && !data.starts_with(b"--Boundary")
        })
}

fn any_part() -> impl Strategy<Value = Part> {
    let name = "[a-zA-Z0-9_äß \\[\\].-]{1,12}";
    let filename = prop::option::of("[a-zA-Z0-9_é () .-]{1,20}");
    let content_type = prop::option::of(prop_oneof![Just("audio/webm"), Just("video/mp4")]);
    (name, filename, content_type, tricky_data()).prop_map(|(name, filename, content_type, data)| Part {
        name,
        filename,
        content_type: content_type.map(str::to_owned),
        data,
    })
}

fn written(parts: &[Part]) -> Vec<u8> {
    let mut body = Vec::new();
    for part in parts {
        body.extend_from_slice(
            format!("--Boundary\r\nContent-Disposition: form-data; name=\"{}\"", part.name).as_bytes(),
        );
        if let Some(filename) = &part.filename {
            body.extend_from_slice(format!("; filename=\"{filename}\"").as_bytes());
        }
        if let Some(content_type) = &part.content_type {
            body.extend_from_slice(format!("\r\nContent-Type: {content_type}").as_bytes());
        }
        body.extend_from_slice(b"\r\n\r\n");
        body.extend_from_slice(&part.data);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--Boundary--\r\n");
    body
}

fn split(body: &[u8], sizes: &[usize]) -> Vec<Bytes> {
    let mut rest = Bytes::copy_from_slice(body);
    let mut frames = Vec::new();
    for &size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        frames.push(rest.split_to(size.min(rest.len())));
    }
    frames
}

fn multer_read(frames: Vec<Bytes>) -> Result<Vec<Part>, multer::Error> {
    async {
        let frames = stream::iter(frames.into_iter().map(Ok::<_, Infallible>));
        let mut form = multer::Multipart::new(frames, "Boundary");
        let mut parts = Vec::new();
        while let Some(field) = form.next_field().await? {
            parts.push(Part {
                name: field.name().unwrap_or_default().to_owned(),
                filename: field.file_name().map(str::to_owned),
                content_type: field.content_type().map(ToString::to_string),
                data: field.bytes().await?.to_vec(),
            });
        }
        Ok(parts)
    }
    .now_or_never()
    .expect("the stream never waits")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read_under_any_split_as_multer_reads_it(
        parts in prop::collection::vec(any_part(), 0..5),
        sizes in prop::collection::vec(1usize..40, 1..20),
    ) {
        let body = written(&parts);
        let frames = split(&body, &sizes);
        prop_assert_eq!(read_with(frames.clone(), "Boundary", Limits::default()), Ok(parts.clone()));
        // multer takes an empty form for a broken one.
        if !parts.is_empty() {
            prop_assert_eq!(multer_read(frames).expect("multer reads it"), parts);
        }
    }

    #[test]
    fn arbitrary_bytes_end_alike_under_any_split(
        body in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'-'), Just(b'B'), Just(b'\r'), Just(b'\n')], 0..300),
        sizes in prop::collection::vec(1usize..30, 1..10),
    ) {
        let whole = read(&body);
        prop_assert_eq!(read_with(split(&body, &sizes), "B", Limits::default()), whole);
    }
}

/// A small generator with a fixed seed (xorshift64*): the loop below meets the same inputs in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides.max(1)
    }
}

#[test]
fn mutated_forms_end_alike_under_any_split() {
    let corpus: [&[u8]; 5] = [
        TWO_PARTS,
        b"--B\r\nContent-Disposition: form-data; name=\"f\"; filename*=UTF-8''%41\r\n\r\n\r\n--B--\r\n",
        b"preamble\r\n--B \r\nContent-Disposition: form-data; name=\"a\\\"%22b\"\r\nX: y\r\n\r\n--B\r\n\r\n--B--\r\nepilogue",
        b"--B\r\nContent-Disposition: form-data; name=f\r\nContent-Type: text/plain\r\n\r\n\r\r\n\r\n--\r\n--B--",
        b"--B--\r\n",
    ];
    let tokens: [&[u8]; 12] =
        [b"\r\n", b"--B", b"--", b"\r", b"\n", b"\"", b";", b"\\", b"\0", b"\r\n\r\n", b"\xff", b"name="];
    let mut dice = Dice(0x5EED);
    let (mut whole_forms, mut refused) = (0, 0);
    for _ in 0..40_000 {
        let mut body = corpus[dice.roll(corpus.len())].to_vec();
        for _ in 0..dice.roll(4) {
            let at = dice.roll(body.len() + 1);
            match dice.roll(4) {
                0 => drop(body.splice(at..at, tokens[dice.roll(tokens.len())].iter().copied())),
                1 => body.truncate(at),
                2 => drop(body.drain(at..(at + dice.roll(8)).min(body.len()))),
                _ => body.iter_mut().skip(at).take(1).for_each(|byte| *byte = dice.roll(256) as u8),
            }
        }
        let sizes: Vec<usize> = (0..4).map(|_| 1 + dice.roll(24)).collect();
        let whole = read(&body);
        assert_eq!(read_with(split(&body, &sizes), "B", Limits::default()), whole, "{sizes:?} of {body:?}");
        *(if whole.is_ok() { &mut whole_forms } else { &mut refused }) += 1;
    }
    assert!(whole_forms > 5_000 && refused > 5_000, "{whole_forms} whole, {refused} refused: a dull corpus");
}

#[test]
fn messages_are_plain_sentences() {
    for error in [FormError::Truncated, FormError::TooManyParts { max: 64 }, FormError::BoundaryInvalid] {
        let text = error.to_string();
        assert!(text.ends_with('.') && text.starts_with(|c: char| c.is_ascii_uppercase()), "{text}");
    }
    assert_eq!(FormError::TooManyParts { max: 64 }.to_string(), "Send a form of at most 64 parts.");
}
