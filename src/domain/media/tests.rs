//! Signatures, the decision between the three sources, type rules, and hostile heads.

use super::*;

fn kind(head: &[u8]) -> Option<(&'static str, &'static str)> {
    sniff(head).map(|sniffed| (sniffed.content_type, sniffed.ext))
}

/// An EBML element whose size takes `size_len` bytes.
fn sized(id: &[u8], size_len: u32, body: &[u8]) -> Vec<u8> {
    let size = body.len() as u64 | 1 << (7 * size_len);
    [id, &size.to_be_bytes()[8 - size_len as usize..], body].concat()
}

fn element(id: &[u8], body: &[u8]) -> Vec<u8> {
    sized(id, 2, body)
}

fn ebml_head(doc_type: &[u8]) -> Vec<u8> {
    let version = element(b"\x42\x86", &[1]);
    element(b"\x1a\x45\xdf\xa3", &[version, element(b"\x42\x82", doc_type)].concat())
}

/// What a live recorder writes first: a segment of unknown size with its tracks.
fn live_webm(track_types: &[u8]) -> Vec<u8> {
    let entries: Vec<u8> = track_types
        .iter()
        .flat_map(|&kind| {
            let entry =
                [element(b"\xd7", &[1]), element(b"\x83", &[kind]), element(b"\x86", b"A_OPUS")].concat();
            element(b"\xae", &entry)
        })
        .collect();
    let info = element(b"\x15\x49\xa9\x66", &element(b"\x4d\x80", b"recorder"));
    let tracks = element(b"\x16\x54\xae\x6b", &entries);
    let cluster = [b"\x1f\x43\xb6\x75".as_slice(), b"\x01\xff\xff\xff\xff\xff\xff\xff", &[0xA3; 50]].concat();
    let segment = b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff".to_vec();
    [ebml_head(b"webm"), segment, info, tracks, cluster].concat()
}

#[test]
fn webm_and_matroska_are_told_by_their_doc_type() {
    assert_eq!(kind(&ebml_head(b"webm")), Some(("video/webm", "webm")));
    assert_eq!(kind(&ebml_head(b"webm\0\0")), Some(("video/webm", "webm")), "padded");
    assert_eq!(kind(&ebml_head(b"matroska")), Some(("video/x-matroska", "mkv")));
    assert_eq!(kind(&ebml_head(b"other")), None);
    assert_eq!(kind(b"\x1a\x45\xdf\xa3"), None);
    assert_eq!(kind(b"\x1a\x45\xdf\xa3webm matroska webm"), None, "the word alone is not enough");

    // Sizes of any length, a filler before the doc type, a header of two kilobytes.
    let filler = sized(b"\xec", 4, &[0; 2000]);
    let doc_type = sized(b"\x42\x82", 8, b"webm");
    assert_eq!(
        kind(&sized(b"\x1a\x45\xdf\xa3", 8, &[filler, doc_type].concat())),
        Some(("video/webm", "webm"))
    );
}

#[test]
fn audio_only_webm_is_known_when_its_tracks_come_first() {
    assert_eq!(kind(&live_webm(&[2])), Some(("audio/webm", "webm")));
    assert_eq!(kind(&live_webm(&[2, 1])), Some(("video/webm", "webm")));
    assert_eq!(kind(&live_webm(&[1])), Some(("video/webm", "webm")));
    assert_eq!(kind(&live_webm(&[])), Some(("video/webm", "webm")));
    let whole = live_webm(&[2, 2]);
    assert_eq!(kind(&whole[..90]), Some(("video/webm", "webm")), "cut within the tracks");

    // An unknown size in one byte looks like 127; the tracks lie beyond that.
    let entry = element(b"\xae", &element(b"\x83", &[2]));
    let segment = [element(b"\xec", &[0; 200]), element(b"\x16\x54\xae\x6b", &entry)].concat();
    let unknown = [ebml_head(b"webm"), b"\x18\x53\x80\x67\xff".to_vec(), segment].concat();
    assert_eq!(kind(&unknown), Some(("audio/webm", "webm")));
}

fn ftyp(major: &[u8]) -> Vec<u8> {
    [b"\0\0\0\x14ftyp", major, b"\0\0\0\0isom\0\0\0\x08free"].concat()
}

#[test]
fn mp4_and_its_relatives_are_told_by_their_brand() {
    for (brand, expected) in [
        (b"isom", ("video/mp4", "mp4")),
        (b"mp42", ("video/mp4", "mp4")),
        (b"iso5", ("video/mp4", "mp4")),
        (b"dash", ("video/mp4", "mp4")),
        (b"M4A ", ("audio/mp4", "m4a")),
        (b"qt  ", ("video/quicktime", "mov")),
        (b"3gp4", ("video/3gpp", "3gp")),
        (b"3g2a", ("video/3gpp2", "3g2")),
        (b"avif", ("image/avif", "avif")),
        (b"heic", ("image/heif", "heif")),
    ] {
        assert_eq!(kind(&ftyp(brand)), Some(expected), "{}", String::from_utf8_lossy(brand));
    }
    assert_eq!(kind(b"\0\0\0\x18styp\0\0\0\0\0\0\0\0"), Some(("video/mp4", "mp4")));
    assert_eq!(kind(b"\0\0\x10\0moov\0\0\0\x6cmvhd"), Some(("video/quicktime", "mov")));
    assert_eq!(kind(b"\0\0\0\x04ftypisom"), None, "a box shorter than its head");
    assert_eq!(kind(b"\0\0\0\x14ftyp"), None);
}

fn ogg_page(flags: u8, payload: &[u8]) -> Vec<u8> {
    let head = [b"OggS\0".as_slice(), &[flags], &[0; 20], &[1, payload.len() as u8]].concat();
    [&head, payload].concat()
}

#[test]
fn ogg_is_video_if_any_of_its_streams_is() {
    assert_eq!(kind(&ogg_page(2, b"OpusHead\x01\x02")), Some(("audio/ogg", "ogg")));
    assert_eq!(kind(&ogg_page(2, b"\x01vorbis")), Some(("audio/ogg", "ogg")));
    let both = [ogg_page(2, b"OpusHead"), ogg_page(2, b"\x80theora\x03"), ogg_page(0, b"")].concat();
    assert_eq!(kind(&both), Some(("video/ogg", "ogv")));
    let data_page = [ogg_page(2, b"OpusHead"), ogg_page(0, b"\x80theora")].concat();
    assert_eq!(kind(&data_page), Some(("audio/ogg", "ogg")), "data is no stream head");
    assert_eq!(kind(b"OggS\0\x02"), Some(("audio/ogg", "ogg")));
    assert_eq!(kind(b"OggS\x07"), None);
}

/// Two MPEG-1 layer III frames of 128 kbit/s at 44.1 kHz.
fn mp3() -> Vec<u8> {
    let mut frame = vec![0; 417];
    frame[..4].copy_from_slice(b"\xff\xfb\x90\x00");
    frame.repeat(2)
}

/// Two ADTS frames of 200 bytes.
fn adts() -> Vec<u8> {
    let mut frame = [0; 200];
    frame[..6].copy_from_slice(&[0xFF, 0xF1, 0x50, 0x80, 200 >> 3, (200 & 7) << 5]);
    frame.repeat(2)
}

#[test]
fn mpeg_audio_needs_a_second_frame_where_the_first_one_ends() {
    assert_eq!(kind(&mp3()), Some(("audio/mpeg", "mp3")));
    assert_eq!(kind(&adts()), Some(("audio/aac", "aac")));
    for mut stray in [mp3(), adts()] {
        let half = stray.len() / 2;
        stray[half] = 0;
        assert_eq!(kind(&stray), None);
    }
    let tag = b"ID3\x04\0\0\0\0\0\x05abcde".to_vec();
    assert_eq!(kind(&tag), Some(("audio/mpeg", "mp3")));
    assert_eq!(kind(&[tag.clone(), adts()].concat()), Some(("audio/aac", "aac")));
    assert_eq!(kind(&[tag.as_slice(), b"fLaC"].concat()), Some(("audio/flac", "flac")));
    assert_eq!(
        kind("\u{feff}text".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>().as_slice()),
        None
    );
}

#[test]
fn other_media_is_told_by_signature() {
    assert_eq!(kind(b"RIFF\x24\0\0\0WAVEfmt "), Some(("audio/wav", "wav")));
    assert_eq!(kind(b"RF64\xff\xff\xff\xffWAVEds64"), Some(("audio/wav", "wav")));
    assert_eq!(kind(b"RIFF\x24\0\0\0AVI LIST"), Some(("video/x-msvideo", "avi")));
    assert_eq!(kind(b"fLaC\0\0\0\x22"), Some(("audio/flac", "flac")));
    assert_eq!(kind(b"FORM\0\0\0\x22AIFF"), Some(("audio/aiff", "aiff")));
    let mut packets = vec![0; 188 * 3];
    packets.iter_mut().step_by(188).for_each(|sync| *sync = 0x47);
    assert_eq!(kind(&packets), Some(("video/mp2t", "ts")));
}

#[test]
fn what_is_not_media_is_known_whatever_it_is_called() {
    for (head, expected) in [
        (b"<!DOCTYPE html><html>".as_slice(), "text/html"),
        (b"\xef\xbb\xbf \r\n<HTML lang=en>", "text/html"),
        (b"<script>alert(1)</script>", "text/html"),
        (b"<!-- x --><p>", "text/html"),
        (b"<?xml version='1.0'?><html xmlns='x'>", "text/html"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        (b"<?xml version='1.0'?>\n<!-- x -->\n<svg onload='x'>", "image/svg+xml"),
        (b"<?xml version='1.0'?><a/>", "text/xml"),
        (b"#!/usr/bin/env node\n", "text/x-shellscript"),
        (b"%PDF-1.7", "application/pdf"),
        (b"PK\x03\x04\x14\0", "application/zip"),
        (b"\x1f\x8b\x08\0", "application/gzip"),
        (b"\x7fELF\x02\x01\x01", "application/x-executable"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "image/webp"),
        (b"7z\xbc\xaf\x27\x1c\0\x04", "application/x-7z-compressed"), // only the second opinion knows it
    ] {
        let sniffed = sniff(head).unwrap_or_else(|| panic!("{head:?}"));
        assert_eq!(sniffed.content_type, expected);
        assert!(!sniffed.is_media());
    }
}

#[test]
fn nothing_certain_is_nothing() {
    for head in
        [b"".as_slice(), b"\0", b"fake video content", b"<3 this", b"<bold", b"MZ", b"BM", b"{}", &[0; 5000]]
    {
        assert_eq!(kind(head), None, "{head:?}");
    }
}

#[test]
fn any_head_ends_without_a_panic() {
    let starts: Vec<Vec<u8>> = vec![
        live_webm(&[2, 1]),
        ftyp(b"isom"),
        [ogg_page(2, b"OpusHead"), ogg_page(2, b"\x80theora")].concat(),
        mp3(),
        adts(),
        b"ID3\x04\0\0\x7f\x7f\x7f\x7f".to_vec(),
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1".to_vec(),
        b"<?xml".to_vec(),
        b"\0\0\0".to_vec(),
        // Elements of size nothing, nested without end.
        [ebml_head(b"webm"), b"\x18\x53\x80\x67\x80".repeat(500), b"\x16\x54\xae\x6b\xff\xae".repeat(300)]
            .concat(),
    ];
    let mut state = 0x5EED_u64;
    let mut roll = |sides: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % sides
    };
    for _ in 0..30_000 {
        let mut head = starts[roll(starts.len())].clone();
        head.truncate(roll(head.len()) + 1);
        for _ in 0..roll(6) {
            let at = roll(head.len());
            head[at] = roll(256) as u8;
        }
        sniff(&head);
    }
}

#[test]
fn the_decision_prefers_bytes_then_declaration_then_name() {
    let webm = sniff(&ebml_head(b"webm"));
    let mp4 = sniff(&ftyp(b"isom"));
    let opus = sniff(&ogg_page(2, b"OpusHead"));
    let html = sniff(b"<html>");
    for (sniffed, declared, filename, content_type, ext) in [
        (webm, None, None, "video/webm", "webm"),
        (webm, Some("audio/webm; codecs=opus"), Some("x.mp4"), "audio/webm", "webm"),
        (webm, Some("video/mp4"), Some("x.mp4"), "video/webm", "webm"),
        (webm, Some("application/octet-stream"), None, "video/webm", "webm"),
        (mp4, Some("audio/mp4"), None, "audio/mp4", "m4a"),
        (mp4, Some("video/quicktime"), None, "video/mp4", "mp4"),
        (opus, Some("application/ogg"), None, "audio/ogg", "ogg"),
        (opus, Some("video/ogg"), None, "video/ogg", "ogv"),
        (html, Some("video/webm"), Some("talk.webm"), "text/html", "html"),
        (None, Some("Video/WebM;codecs=vp9"), Some("talk.WEBM"), "video/webm", "webm"),
        (None, Some("video/webm"), None, "video/webm", "webm"),
        (None, Some("video/webm"), Some("talk.x_y"), "video/webm", "webm"),
        (None, Some("application/octet-stream"), Some("talk.m4a"), "audio/mp4", "m4a"),
        (None, Some("not a type"), Some("talk.tar.gz"), "application/octet-stream", "gz"),
        (None, None, Some("../../x.php/.."), "application/octet-stream", "bin"),
        (None, None, Some("x.elevenchars"), "application/octet-stream", "bin"),
        (None, None, Some("webm"), "application/octet-stream", "bin"),
        (None, Some("text/plain"), None, "text/plain", "bin"),
        (None, None, None, "application/octet-stream", "bin"),
    ] {
        let expected = MediaGuess { content_type: content_type.into(), ext: ext.into() };
        assert_eq!(decide(sniffed, declared, filename), expected, "{sniffed:?} {declared:?} {filename:?}");
    }
}

#[test]
fn types_and_extensions_belong_together() {
    for (ext, content_type) in [
        ("webm", "video/webm"),
        ("WEBA", "audio/webm"),
        ("mkv", "video/x-matroska"),
        ("m4a", "audio/mp4"),
        ("oga", "audio/ogg"),
        ("opus", "audio/ogg"),
        ("3gp", "video/3gpp"),
        ("mp3", "audio/mpeg"),
        ("wav", "audio/wav"),
        ("avi", "video/x-msvideo"),
        ("mov", "video/quicktime"),
    ] {
        assert_eq!(type_for_ext(ext), Some(content_type), "{ext}");
    }
    assert_eq!(type_for_ext("html"), None);
    assert_eq!(ext_for("Audio/MPEG; x=y"), Some("mp3"));
    assert_eq!(ext_for("text/html"), None);
    for (content_type, _, ext) in TYPES {
        assert_eq!(content_type_essence(content_type).as_deref(), Some(*content_type));
        assert!(type_for_ext(ext).is_some(), "{ext}");
    }
}

#[test]
fn the_essence_of_a_content_type() {
    assert_eq!(content_type_essence(" Video/WebM ; codecs=\"vp9,opus\"").as_deref(), Some("video/webm"));
    assert_eq!(content_type_essence("application/vnd.api+json").as_deref(), Some("application/vnd.api+json"));
    let long = format!("video/{}", "x".repeat(128));
    for invalid in
        ["", "video", "video/", "/webm", "video/*", "vi deo/webm", "a/b/c", "video/webm\r\nX: y", &long]
    {
        assert_eq!(content_type_essence(invalid), None, "{invalid:?}");
    }
}

#[test]
fn type_rules_allow_what_they_say() {
    let rules =
        |list: &[&str]| TypeRules::parse(&list.iter().map(|&rule| rule.to_owned()).collect::<Vec<_>>());
    let usual = rules(&["audio/*", "Video/*", "application/ogg"]).unwrap();
    for allowed in ["audio/webm", "VIDEO/mp4; codecs=avc1", "application/ogg"] {
        assert!(usual.allows(allowed), "{allowed}");
    }
    for refused in ["application/octet-stream", "text/html", "audiox/webm", "audio", "audio/*", ""] {
        assert!(!usual.allows(refused), "{refused}");
    }
    assert!(rules(&["*/*"]).unwrap().allows("text/html"));
    assert!(!rules(&["*/*"]).unwrap().allows("nonsense"));
    assert!(!rules(&[]).unwrap().allows("video/webm"));
    for invalid in ["", "*", "video", "video/", "*/webm", "a/b/*", "video/webm;codecs=vp9", "video;x/*"] {
        assert_eq!(rules(&[invalid]), Err(InvalidTypeRule(invalid.to_owned())), "{invalid:?}");
    }
}
