//! Ranges, conditions and dates, rule by rule.

use time::macros::datetime;

use super::*;

const TAG: &str = "\"abc,def\"";
const MODIFIED: OffsetDateTime = datetime!(1994-11-06 08:49:37.5 UTC);
const MODIFIED_TEXT: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

fn partial(start: u64, end_inclusive: u64) -> RangeDecision {
    RangeDecision::Partial { start, end_inclusive }
}

fn of_1000(range: &str) -> RangeDecision {
    decide(Some(range), None, 1000, None, None)
}

#[test]
fn one_range_is_cut_to_the_size() {
    for (range, expected) in [
        ("bytes=0-499", partial(0, 499)),
        ("bytes=500-", partial(500, 999)),
        ("bytes=0-0", partial(0, 0)),
        ("bytes=999-999", partial(999, 999)),
        ("bytes=-1", partial(999, 999)),
        ("bytes=-1000", partial(0, 999)),
        ("bytes=-5000", partial(0, 999)),
        ("bytes=0-99999999999999999999999", partial(0, 999)),
        ("BYTES = 1-2", partial(1, 2)),
        ("bytes=, 1-2 ,", partial(1, 2)),
        ("bytes=1000-", RangeDecision::Unsatisfiable),
        ("bytes=1000-1001", RangeDecision::Unsatisfiable),
        ("bytes=99999999999999999999999-", RangeDecision::Unsatisfiable),
        ("bytes=-0", RangeDecision::Unsatisfiable),
    ] {
        assert_eq!(of_1000(range), expected, "{range}");
    }
}

#[test]
fn what_is_no_single_byte_range_gets_everything() {
    for range in [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=a-b",
        "bytes=2-1",
        "bytes=+1-2",
        "bytes=1-2-3",
        "bytes=0x1-2",
        "bytes=1 - 2",
        "bytes=--1",
        "items=0-1",
        "0-1",
        "bytes=0-1,5-6",
        "bytes=0-,0-,0-",
        "bytes=5000-,6000-",
    ] {
        assert_eq!(of_1000(range), RangeDecision::Whole, "{range:?}");
    }
    assert_eq!(decide(None, Some(TAG), 1000, Some(TAG), None), RangeDecision::Whole);
}

#[test]
fn nothing_has_no_ranges() {
    let of_0 = |range| decide(Some(range), None, 0, None, None);
    assert_eq!(of_0("bytes=0-"), RangeDecision::Unsatisfiable);
    assert_eq!(of_0("bytes=-0"), RangeDecision::Unsatisfiable);
    assert_eq!(of_0("bytes=-5"), RangeDecision::Whole);
    assert_eq!(decide(Some("bytes=0-"), None, u64::MAX, None, None), partial(0, u64::MAX - 1));
}

#[test]
fn a_range_holds_only_for_the_content_it_was_meant_for() {
    let with = |if_range, etag| decide(Some("bytes=0-1"), Some(if_range), 10, etag, Some(MODIFIED));
    assert_eq!(with(TAG, Some(TAG)), partial(0, 1));
    assert_eq!(with(MODIFIED_TEXT, None), partial(0, 1), "a fraction of a second cannot be told in a header");
    for (if_range, etag) in [
        ("\"other\"", Some(TAG)),
        (TAG, None),
        ("W/\"abc,def\"", Some("W/\"abc,def\"")),
        ("W/\"abc,def\"", Some(TAG)),
        ("\"abc,def\", \"x\"", Some(TAG)),
        ("Sun, 06 Nov 1994 08:49:38 GMT", Some(TAG)),
        ("yesterday", Some(TAG)),
        ("", Some(TAG)),
    ] {
        assert_eq!(with(if_range, etag), RangeDecision::Whole, "{if_range}");
    }
    // A stale range that cannot be satisfied is no error either.
    assert_eq!(decide(Some("bytes=99-"), Some("\"x\""), 10, Some(TAG), None), RangeDecision::Whole);
}

#[test]
fn not_modified_compares_weakly_and_tags_before_dates() {
    let tags = |list| not_modified(Some(list), None, Some(TAG), None);
    for list in
        [TAG, "*", " * ", "W/\"abc,def\"", "\"x\", \"abc,def\"", ",\"x\",,\"abc,def\" ", "\"\",\"abc,def\""]
    {
        assert!(tags(list), "{list}");
    }
    for list in ["", "\"x\"", "abc,def", "\"abc", "\"x\" \"abc,def\"", "x, \"abc,def\"", "w/\"abc,def\""] {
        assert!(!tags(list), "{list}");
    }
    assert!(!not_modified(Some(TAG), None, None, None));
    assert!(not_modified(Some("*"), None, None, None));

    let since = |date| not_modified(None, Some(date), Some(TAG), Some(MODIFIED));
    assert!(since(MODIFIED_TEXT));
    assert!(since("Mon, 07 Nov 1994 00:00:00 GMT"));
    assert!(!since("Sun, 06 Nov 1994 08:49:36 GMT"));
    assert!(!since("nonsense"));
    assert!(!not_modified(None, Some(MODIFIED_TEXT), None, None));
    assert!(
        !not_modified(Some("\"x\""), Some(MODIFIED_TEXT), Some(TAG), Some(MODIFIED)),
        "tags decide alone"
    );
    assert!(!not_modified(None, None, Some(TAG), Some(MODIFIED)));
}

#[test]
fn preconditions_compare_strongly_and_tags_before_dates() {
    let fails = |list, etag| precondition_failed(Some(list), None, etag, None);
    assert!(!fails(TAG, Some(TAG)));
    assert!(!fails("*", None));
    assert!(!fails("\"x\", \"abc,def\"", Some(TAG)));
    assert!(fails("\"x\"", Some(TAG)));
    assert!(fails(TAG, None));
    assert!(fails("W/\"abc,def\"", Some(TAG)));
    assert!(fails("W/\"abc,def\"", Some("W/\"abc,def\"")));
    assert!(fails("nonsense", Some(TAG)));

    let since = |date| precondition_failed(None, Some(date), Some(TAG), Some(MODIFIED));
    assert!(!since(MODIFIED_TEXT));
    assert!(since("Sun, 06 Nov 1994 08:49:36 GMT"));
    assert!(!since("nonsense"));
    assert!(!precondition_failed(
        Some(TAG),
        Some("Sun, 06 Nov 1994 08:49:36 GMT"),
        Some(TAG),
        Some(MODIFIED)
    ));
    assert!(!precondition_failed(None, None, None, None));
}

#[test]
fn dates_are_written_in_one_form_and_read_in_three() {
    assert_eq!(http_date(MODIFIED), MODIFIED_TEXT);
    assert_eq!(http_date(datetime!(2024-02-29 23:59:59 -2)), "Fri, 01 Mar 2024 01:59:59 GMT");
    assert_eq!(http_date(datetime!(-0001-01-01 00:00 UTC)), "Thu, 01 Jan 1970 00:00:00 GMT");
    assert_eq!(http_date(datetime!(9999-12-31 23:59 -5)), "Thu, 01 Jan 1970 00:00:00 GMT");

    let expected = Some(datetime!(1994-11-06 08:49:37 UTC));
    for text in [MODIFIED_TEXT, "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
        assert_eq!(parse_http_date(text), expected, "{text}");
    }
    assert_eq!(
        parse_http_date("Wednesday, 06-Nov-24 08:49:37 GMT"),
        Some(datetime!(2024-11-06 08:49:37 UTC))
    );
    for text in [
        "",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 CET",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "1994-11-06T08:49:37Z",
        "Sun, 06 Nov 1994 25:49:37 GMT",
        "Sunday, 06-Nov-+4 08:49:37 GMT",
        "Sunday, 06-Nov-1994 08:49:37 GMT",
        "-é",
        "--",
    ] {
        assert_eq!(parse_http_date(text), None, "{text:?}");
    }
}
