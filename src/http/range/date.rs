//! Dates as HTTP writes them (RFC 9110 section 5.6.7).
//!
//! Apart because the three spellings are a matter of their own. Nothing here reads the clock.

use time::format_description::StaticFormatDescription;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

const IMF_FIXDATE: StaticFormatDescription =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
const RFC_850: StaticFormatDescription =
    format_description!("[weekday repr:long], [day]-[month repr:short]-[year] [hour]:[minute]:[second] GMT");
const ASCTIME: StaticFormatDescription = format_description!(
    "[weekday repr:short] [month repr:short] [day padding:space] [hour]:[minute]:[second] [year]"
);

/// A point in time as `Sun, 06 Nov 1994 08:49:37 GMT`; fractions of a second are dropped.
///
/// A year that four digits cannot tell, as a broken file system might report, becomes the epoch.
pub fn http_date(time: OffsetDateTime) -> String {
    let utc = time.checked_to_offset(UtcOffset::UTC).filter(|utc| (0..=9999).contains(&utc.year()));
    let utc = utc.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    utc.format(IMF_FIXDATE).expect("a date with an offset has every component of the format")
}

/// Reads a date in the current form or in one of the two obsolete ones; `None` if it is none of these.
///
/// A year of two digits belongs to 1970 to 2069.
pub fn parse_http_date(text: &str) -> Option<OffsetDateTime> {
    let parse = |text: &str, format| PrimitiveDateTime::parse(text, format).ok();
    let parsed = parse(text, IMF_FIXDATE)
        .or_else(|| parse(text, ASCTIME))
        .or_else(|| parse(&with_century(text)?, RFC_850))?;
    let (date, time): (Date, Time) = (parsed.date(), parsed.time());
    Some(OffsetDateTime::new_utc(date, time))
}

/// `Sunday, 06-Nov-94 08:49:37 GMT` with the year in four digits.
fn with_century(text: &str) -> Option<String> {
    let dash = text.rfind('-')?;
    let (before, year_and_rest) = text.split_at_checked(dash + 1)?;
    let (year, rest) = year_and_rest.split_at_checked(2)?;
    let number: u8 = year.parse().ok()?;
    if !rest.starts_with(' ') || !year.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let century = if number < 70 { 20 } else { 19 };
    Some(format!("{before}{century}{year}{rest}"))
}
