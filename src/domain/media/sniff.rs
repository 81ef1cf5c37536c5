//! What the first bytes of a file say about its format.
//!
//! Apart from the decision because it is a table of signatures and a few bounded walks over untrusted bytes: every step
//! moves forward, nothing recurses and nothing looks beyond what it is given. Our own table comes first; the `infer` crate
//! is asked only about what is neither audio nor video, and not believed where its signature is two bytes.

use super::Container::{self, *};
use super::Sniffed;

/// How many of a file's first bytes [`sniff`] wants; fewer are fine if the file has no more.
pub const SNIFF_BYTES: usize = 4096;

/// The format of a file from its first bytes; `None` if they say nothing certain.
pub fn sniff(first_bytes: &[u8]) -> Option<Sniffed> {
    let head = &first_bytes[..first_bytes.len().min(SNIFF_BYTES)];
    ebml(head)
        .or_else(|| iso_media(head))
        .or_else(|| ogg(head))
        .or_else(|| riff(head))
        .or_else(|| by_signature(head))
        .or_else(|| mpeg_audio(head))
        .or_else(|| markup(head))
        .or_else(|| second_opinion(head))
}

const fn found(container: Container, content_type: &'static str, ext: &'static str) -> Option<Sniffed> {
    Some(Sniffed { container, content_type, ext })
}

const SIGNATURES: &[(&[u8], Container, &str, &str)] = &[
    (b"fLaC", Flac, "audio/flac", "flac"),
    (b"#!AMR", OtherMedia, "audio/amr", "amr"),
    (b"caff\0\x01", OtherMedia, "audio/x-caf", "caf"),
    (b"FLV\x01", OtherMedia, "video/x-flv", "flv"),
    (b"\0\0\x01\xba", OtherMedia, "video/mpeg", "mpg"),
    (
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",
        OtherMedia,
        "video/x-ms-wmv",
        "wmv",
    ),
    (b"%PDF-", NotMedia, "application/pdf", "pdf"),
    (b"PK\x03\x04", NotMedia, "application/zip", "zip"),
    (b"PK\x05\x06", NotMedia, "application/zip", "zip"),
    (b"\x1f\x8b\x08", NotMedia, "application/gzip", "gz"),
    (b"\x7fELF", NotMedia, "application/x-executable", "elf"),
    (b"\x89PNG\r\n\x1a\n", NotMedia, "image/png", "png"),
    (b"\xff\xd8\xff", NotMedia, "image/jpeg", "jpg"),
    (b"GIF87a", NotMedia, "image/gif", "gif"),
    (b"GIF89a", NotMedia, "image/gif", "gif"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", NotMedia, "application/x-ole-storage", "doc"),
    (b"#!/", NotMedia, "text/x-shellscript", "sh"),
    (b"#! /", NotMedia, "text/x-shellscript", "sh"),
    (b"<?php", NotMedia, "text/x-php", "php"),
];

fn by_signature(head: &[u8]) -> Option<Sniffed> {
    if let Some((_, container, content_type, ext)) = SIGNATURES.iter().find(|row| head.starts_with(row.0)) {
        return found(*container, content_type, ext);
    }
    // MPEG transport stream: packets of 188 bytes, each begins with a sync byte.
    let sync = |packet: usize| head.get(packet * 188) == Some(&0x47);
    if (0..3).all(sync) { found(OtherMedia, "video/mp2t", "ts") } else { None }
}

// --- WebM and Matroska: EBML (RFC 8794), element ids of RFC 9559

const EBML: u64 = 0x1A45_DFA3;
const DOC_TYPE: u64 = 0x4282;
const SEGMENT: u64 = 0x1853_8067;
const CLUSTER: u64 = 0x1F43_B675;
const TRACKS: u64 = 0x1654_AE6B;
const TRACK_ENTRY: u64 = 0xAE;
const TRACK_TYPE: u64 = 0x83;
const AUDIO_TRACK: &[u8] = &[2];

fn ebml(head: &[u8]) -> Option<Sniffed> {
    let mut top = Elements(head);
    let (_, header) = top.next().filter(|(id, _)| *id == EBML)?;
    let (_, doc_type) = Elements(header.whole()?).find(|(id, _)| *id == DOC_TYPE)?;
    let doc_type = doc_type.whole()?;
    let end = doc_type.iter().position(|&byte| byte == 0).unwrap_or(doc_type.len());
    let audio = top.next().is_some_and(|(id, segment)| id == SEGMENT && only_audio_tracks(segment.bytes));
    match (&doc_type[..end], audio) {
        (b"webm", false) => found(Webm, "video/webm", "webm"),
        (b"webm", true) => found(Webm, "audio/webm", "webm"),
        (b"matroska", false) => found(Matroska, "video/x-matroska", "mkv"),
        (b"matroska", true) => found(Matroska, "audio/x-matroska", "mka"),
        _ => None,
    }
}

/// Whether the list of tracks lies within the first bytes, as live recorders write it, and has nothing but audio.
fn only_audio_tracks(segment: &[u8]) -> bool {
    let tracks = Elements(segment).take_while(|(id, _)| *id != CLUSTER).find(|(id, _)| *id == TRACKS);
    let Some(tracks) = tracks.and_then(|(_, tracks)| tracks.whole()) else { return false };
    let mut entries = Elements(tracks).filter(|(id, _)| *id == TRACK_ENTRY).peekable();
    let is_audio = |(_, entry): (u64, Body)| {
        Elements(entry.bytes).any(|(id, kind)| id == TRACK_TYPE && kind.whole() == Some(AUDIO_TRACK))
    };
    entries.peek().is_some() && entries.all(is_audio)
}

/// The bytes of an element, as many as there are of them.
struct Body<'a> {
    bytes: &'a [u8],
    cut: bool,
}

impl<'a> Body<'a> {
    fn whole(&self) -> Option<&'a [u8]> {
        (!self.cut).then_some(self.bytes)
    }
}

/// The elements of one level, one after the other.
struct Elements<'a>(&'a [u8]);

impl<'a> Iterator for Elements<'a> {
    type Item = (u64, Body<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (id, id_len) = vint(self.0).filter(|(_, len)| *len <= 4)?;
        let (size, size_len) = vint(&self.0[id_len..])?;
        let rest = &self.0[id_len + size_len..];
        let value_bits = (1u64 << (7 * size_len)) - 1;
        let size = size & value_bits;
        // All ones means that the writer did not know: to the end of what there is.
        let known =
            usize::try_from(size).ok().filter(|&size| size as u64 != value_bits && size <= rest.len());
        let (bytes, after) = rest.split_at(known.unwrap_or(rest.len()));
        self.0 = after;
        Some((id, Body { bytes, cut: known.is_none() }))
    }
}

/// A variable-length integer with its marker bit, and its length of 1 to 8 bytes.
fn vint(bytes: &[u8]) -> Option<(u64, usize)> {
    let len = bytes.first()?.leading_zeros() as usize + 1;
    let bytes = bytes.get(..len).filter(|_| len <= 8)?;
    Some((bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)), len))
}

// --- MP4 and its relatives: ISO/IEC 14496-12 boxes

fn iso_media(head: &[u8]) -> Option<Sniffed> {
    let (size, kind) = (head.get(..4)?, head.get(4..8)?);
    let size = u32::from_be_bytes(size.try_into().ok()?) as usize;
    match kind {
        b"ftyp" if size >= 12 => {}
        b"styp" | b"moof" | b"sidx" if size >= 8 => return found(Mp4, "video/mp4", "mp4"),
        // QuickTime files from before `ftyp` begin with their content.
        b"moov" | b"mdat" | b"wide" if size >= 8 || size <= 1 => {
            return found(QuickTime, "video/quicktime", "mov");
        }
        _ => return None,
    }
    let major = head.get(8..12)?;
    match major {
        b"qt  " => found(QuickTime, "video/quicktime", "mov"),
        b"M4A " | b"M4B " | b"M4P " | b"F4A " | b"F4B " => found(Mp4, "audio/mp4", "m4a"),
        b"avif" | b"avis" => found(NotMedia, "image/avif", "avif"),
        b"heic" | b"heix" | b"heim" | b"hevc" | b"mif1" | b"msf1" => found(NotMedia, "image/heif", "heif"),
        b"crx " => found(NotMedia, "image/x-canon-cr3", "cr3"),
        [b'3', b'g', b'2', _] => found(ThreeGp, "video/3gpp2", "3g2"),
        [b'3', b'g', _, _] => found(ThreeGp, "video/3gpp", "3gp"),
        _ => found(Mp4, "video/mp4", "mp4"), // isom, mp42, iso5, dash, avc1 and many more
    }
}

// --- Ogg: RFC 3533

fn ogg(head: &[u8]) -> Option<Sniffed> {
    const VIDEO: [&[u8]; 4] = [b"\x80theora", b"\x01video", b"BBCD\0", b"OVP80"];
    let mut rest = head;
    let mut pages = 0;
    // Every logical stream opens with a page of its own, and all these come first.
    while let [b'O', b'g', b'g', b'S', 0, flags, ..] = rest {
        if flags & 2 == 0 {
            break;
        }
        pages += 1;
        let Some(lacing) = rest.get(26).and_then(|&segments| rest.get(27..27 + usize::from(segments))) else {
            break;
        };
        let payload = &rest[27 + lacing.len()..];
        if VIDEO.iter().any(|codec| payload.starts_with(codec)) {
            return found(Ogg, "video/ogg", "ogv");
        }
        let size: usize = lacing.iter().map(|&len| usize::from(len)).sum();
        rest = payload.get(size..).unwrap_or_default();
    }
    if pages > 0 { found(Ogg, "audio/ogg", "ogg") } else { None }
}

/// RIFF and its relatives: four letters, a length, four letters.
fn riff(head: &[u8]) -> Option<Sniffed> {
    match (head.get(..4)?, head.get(8..12)?) {
        (b"RIFF" | b"RF64", b"WAVE") => found(Wav, "audio/wav", "wav"),
        (b"RIFF", b"AVI ") => found(Avi, "video/x-msvideo", "avi"),
        (b"RIFF", b"WEBP") => found(NotMedia, "image/webp", "webp"),
        (b"FORM", b"AIFF" | b"AIFC") => found(OtherMedia, "audio/aiff", "aiff"),
        _ => None,
    }
}

// --- MP3 and ADTS: a sync pattern is short, so the next frame has to be where the first one says

fn mpeg_audio(head: &[u8]) -> Option<Sniffed> {
    if let [b'I', b'D', b'3', major, minor, _, size @ ..] = head
        && *major < 0xFF
        && *minor < 0xFF
        && let Some(size) = size.get(..4).filter(|size| size.iter().all(|byte| byte & 0x80 == 0))
    {
        let size = size.iter().fold(0usize, |size, &byte| size << 7 | usize::from(byte));
        let tagged = head.get(10 + size..).unwrap_or_default();
        let inner = if tagged.starts_with(b"fLaC") { by_signature(tagged) } else { frames(tagged) };
        return inner.or(found(Mp3, "audio/mpeg", "mp3"));
    }
    frames(head)
}

fn frames(head: &[u8]) -> Option<Sniffed> {
    let two = |length: fn(&[u8]) -> Option<usize>| {
        length(head).is_some_and(|len| match head.get(len..) {
            Some(next) if next.len() >= 6 => length(next).is_some(),
            _ => true,
        })
    };
    if two(mp3_frame_len) {
        found(Mp3, "audio/mpeg", "mp3")
    } else if two(adts_frame_len) {
        found(Aac, "audio/aac", "aac")
    } else {
        None
    }
}

/// Length of an MPEG audio layer III frame (ISO/IEC 11172-3, 13818-3).
fn mp3_frame_len(head: &[u8]) -> Option<usize> {
    const MPEG1_KBPS: [usize; 14] = [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320];
    const MPEG2_KBPS: [usize; 14] = [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];
    let &[0xFF, b1, b2, ..] = head else { return None };
    if b1 & 0xE6 != 0xE2 {
        return None; // no sync, or another layer
    }
    let (rate_divisor, kbps, samples_8) = match b1 >> 3 & 3 {
        3 => (1, MPEG1_KBPS, 144),
        2 => (2, MPEG2_KBPS, 72),
        0 => (4, MPEG2_KBPS, 72),
        _ => return None,
    };
    let kbps = kbps.get(usize::from(b2 >> 4).checked_sub(1)?)?;
    let hertz = [44_100, 48_000, 32_000].get(usize::from(b2 >> 2 & 3))? / rate_divisor;
    Some(samples_8 * kbps * 1000 / hertz + usize::from(b2 >> 1 & 1))
}

/// Length of an AAC frame in ADTS (ISO/IEC 13818-7).
fn adts_frame_len(head: &[u8]) -> Option<usize> {
    let &[0xFF, b1, b2, b3, b4, b5, ..] = head else { return None };
    if b1 & 0xF6 != 0xF0 || b2 >> 2 & 0xF > 12 {
        return None;
    }
    let len = usize::from(b3 & 3) << 11 | usize::from(b4) << 3 | usize::from(b5 >> 5);
    (len >= 7).then_some(len)
}

// --- text that a browser would run or render

/// HTML as browsers recognise it (WHATWG MIME Sniffing section 7.1), SVG and other XML.
fn markup(head: &[u8]) -> Option<Sniffed> {
    const TAGS: [&str; 19] = [
        "<!doctype html",
        "<html",
        "<head",
        "<script",
        "<iframe",
        "<h1",
        "<div",
        "<font",
        "<table",
        "<a",
        "<style",
        "<title",
        "<b",
        "<body",
        "<br",
        "<p",
        "<meta",
        "<link",
        "<img",
    ];
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let start = head.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0c))?;
    let text = head[start..].to_ascii_lowercase();
    let mentions = |tag: &str| memchr::memmem::find(&text, tag.as_bytes()).is_some();
    let opens = |tag: &str| {
        let rest = text.strip_prefix(tag.as_bytes());
        rest.is_some_and(|rest| {
            matches!(rest.first(), Some(b' ' | b'>' | b'\t' | b'\n' | b'\r' | b'/' | 0x0c))
        })
    };
    let comment_or_xml =
        text.starts_with(b"<!--") || text.starts_with(b"<?xml") || text.starts_with(b"<!doctype");
    if opens("<svg") || (comment_or_xml && mentions("<svg") && !mentions("<html")) {
        found(NotMedia, "image/svg+xml", "svg")
    } else if TAGS.iter().any(|tag| opens(tag))
        || text.starts_with(b"<!--")
        || mentions("<html") && comment_or_xml
    {
        found(NotMedia, "text/html", "html")
    } else if text.starts_with(b"<?xml") {
        found(NotMedia, "text/xml", "xml")
    } else {
        None
    }
}

fn second_opinion(head: &[u8]) -> Option<Sniffed> {
    use infer::MatcherType::{Audio, Video};
    // Two or three bytes are all these are recognised by: among random bytes they would turn up by chance.
    const WEAK: [&str; 10] = [
        "application/vnd.microsoft.portable-executable",
        "application/x-executable",
        "application/x-llvm",
        "application/x-x509-ca-cert",
        "application/x-compress",
        "application/postscript",
        "application/x-shockwave-flash",
        "application/octet-stream",
        "image/bmp",
        "image/vnd.ms-photo",
    ];
    let kind = infer::get(head)?;
    if matches!(kind.matcher_type(), Audio | Video) || WEAK.contains(&kind.mime_type()) {
        return None;
    }
    found(NotMedia, kind.mime_type(), kind.extension())
}
