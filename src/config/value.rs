//! Values as they were written, and how each kind of setting is read from them.
//!
//! Apart from `reader` because these are pure functions of one value: text in, typed value or a half sentence
//! ("needs a unit …") out. Never put a key's name or a source in here.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;

/// A value as its source gave it. TOML says what it is; the environment and flags only know text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw {
    /// From the environment, `.env` or a flag: any kind may be meant.
    Untyped(String),
    /// A TOML string.
    Text(String),
    /// A TOML integer that fits.
    Integer(i64),
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML array.
    List(Vec<Raw>),
    /// Anything else TOML can say, as written: no setting takes one.
    Other(String),
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untyped(text) | Self::Text(text) | Self::Other(text) => f.write_str(text),
            Self::Integer(number) => number.fmt(f),
            Self::Boolean(yes) => yes.fmt(f),
            Self::List(items) => {
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i > 0 { ", " } else { "" })?;
                }
                Ok(())
            }
        }
    }
}

/// What is wrong with a value: the end of a sentence that starts with the key.
pub(super) type Wrong = String;

/// Far beyond any sensible setting, and far below where adding it to a clock overflows.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

pub(super) fn text(raw: &Raw) -> Result<String, Wrong> {
    match raw {
        Raw::Untyped(text) | Raw::Text(text) => Ok(text.trim().to_owned()),
        _ => Err("must be text, in quotes".into()),
    }
}

pub(super) fn whole(raw: &Raw, range: RangeInclusive<u64>) -> Result<u64, Wrong> {
    let number = match raw {
        Raw::Integer(number) => u64::try_from(*number).ok(),
        Raw::Untyped(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number| range.contains(number)).ok_or_else(|| {
        let quotes = if matches!(raw, Raw::Text(_)) { ", without quotes" } else { "" };
        format!("must be a whole number from {} to {}{quotes}", range.start(), range.end())
    })
}

pub(super) fn switch(raw: &Raw) -> Result<bool, Wrong> {
    match raw {
        Raw::Boolean(yes) => Ok(*yes),
        Raw::Untyped(text) if text.trim() == "true" => Ok(true),
        Raw::Untyped(text) if text.trim() == "false" => Ok(false),
        Raw::Text(_) => Err("must be true or false, without quotes".into()),
        _ => Err("must be true or false".into()),
    }
}

pub(super) fn duration(raw: &Raw, range: &RangeInclusive<Duration>) -> Result<Duration, Wrong> {
    let text = match raw {
        Raw::Integer(number) => number.to_string(),
        other => text(other).map_err(|_| "must be a duration with a unit, like \"30s\" or \"2min\"")?,
    };
    if text.parse::<f64>().is_ok() {
        return Err(format!("needs a unit: write \"{text}s\", \"{text}min\" or \"{text}h\""));
    }
    let duration = humantime::parse_duration(&text)
        .map_err(|_| "must be a duration with a unit, like \"30s\", \"2min\" or \"24h\"")?;
    let least = *range.start();
    let most = LONGEST.min(*range.end());
    if duration < least {
        return Err(match least {
            Duration::ZERO | SHORTEST => "must be more than zero".into(),
            _ => format!("must be at least {}", humantime::format_duration(least)),
        });
    }
    if duration > most {
        return Err(format!("must be at most {}", humantime::format_duration(most)));
    }
    Ok(duration)
}

/// The shortest duration of a setting that must be more than zero.
pub(super) const SHORTEST: Duration = Duration::from_millis(1);

pub(super) fn size(raw: &Raw, least: u64) -> Result<u64, Wrong> {
    const FORM: &str = "must be a size, like \"256MiB\" or \"5GiB\", or a whole number of bytes";
    let bytes = match raw {
        Raw::Integer(number) => u64::try_from(*number).map_err(|_| "must not be negative")?,
        other => text(other).and_then(|text| text.parse::<ByteSize>()).map_err(|_| FORM)?.as_u64(),
    };
    match bytes {
        _ if bytes > i64::MAX as u64 => Err("must be less than 8EiB".into()),
        _ if bytes >= least => Ok(bytes),
        _ if least == 1 => Err("must be more than zero".into()),
        _ => Err(format!("must be at least {least} bytes")),
    }
}

pub(super) fn list(raw: &Raw) -> Result<Vec<String>, Wrong> {
    match raw {
        Raw::Untyped(text) => {
            Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
        }
        Raw::List(items) => items.iter().map(text).collect::<Result<_, _>>().map_err(|_| LIST.into()),
        _ => Err(LIST.into()),
    }
}

const LIST: &str = "must be a list of texts, like [\"audio/*\", \"video/*\"]";

pub(super) fn choice<T: Copy>(raw: &Raw, choices: &[(&str, T)]) -> Result<T, Wrong> {
    let name = text(raw).ok();
    choices.iter().find(|(choice, _)| name.as_deref() == Some(*choice)).map(|(_, value)| *value).ok_or_else(
        || {
            let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            format!("must be {}", names.join(" or "))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn untyped(text: &str) -> Raw {
        Raw::Untyped(text.into())
    }

    #[test]
    fn durations_carry_units() {
        let any = Duration::ZERO..=Duration::MAX;
        assert_eq!(duration(&Raw::Text("30s".into()), &any), Ok(Duration::from_secs(30)));
        assert_eq!(duration(&untyped(" 2min "), &any), Ok(Duration::from_secs(120)));
        assert_eq!(duration(&untyped("0s"), &any), Ok(Duration::ZERO));
        for bare in [Raw::Integer(30), untyped("30"), Raw::Text("30".into())] {
            assert_eq!(
                duration(&bare, &any).unwrap_err(),
                "needs a unit: write \"30s\", \"30min\" or \"30h\"",
                "{bare:?}"
            );
        }
        assert!(duration(&untyped("soon"), &any).unwrap_err().contains("like \"30s\""));
        assert!(duration(&Raw::Boolean(true), &any).unwrap_err().contains("with a unit"));
        assert_eq!(duration(&untyped("0s"), &(SHORTEST..=LONGEST)).unwrap_err(), "must be more than zero");
        assert_eq!(
            duration(&untyped("1ms"), &(Duration::from_secs(1)..=LONGEST)).unwrap_err(),
            "must be at least 1s"
        );
        assert!(duration(&untyped("900years"), &any).unwrap_err().starts_with("must be at most"));
    }

    #[test]
    fn sizes_are_bytes_or_carry_units() {
        assert_eq!(size(&untyped("5GiB"), 1), Ok(5 << 30));
        assert_eq!(size(&Raw::Text("1.5 KiB".into()), 1), Ok(1536));
        assert_eq!(size(&untyped("5GB"), 1), Ok(5_000_000_000));
        assert_eq!(size(&Raw::Integer(1024), 1), Ok(1024));
        assert_eq!(size(&untyped("1024"), 1), Ok(1024));
        assert_eq!(size(&untyped("0"), 0), Ok(0));
        assert_eq!(size(&untyped("0"), 1).unwrap_err(), "must be more than zero");
        assert_eq!(size(&Raw::Integer(-1), 0).unwrap_err(), "must not be negative");
        assert_eq!(size(&untyped("99EiB"), 1).unwrap_err(), "must be less than 8EiB");
        assert!(size(&untyped("lots"), 1).unwrap_err().starts_with("must be a size"));
    }

    #[test]
    fn numbers_switches_lists_and_choices() {
        assert_eq!(whole(&untyped("80"), 0..=65535), Ok(80));
        assert_eq!(
            whole(&Raw::Text("80".into()), 0..=65535).unwrap_err(),
            "must be a whole number from 0 to 65535, without quotes"
        );
        assert_eq!(
            whole(&untyped("70000"), 0..=65535).unwrap_err(),
            "must be a whole number from 0 to 65535"
        );
        assert_eq!(switch(&untyped("true")), Ok(true));
        assert_eq!(switch(&Raw::Boolean(false)), Ok(false));
        assert!(switch(&Raw::Text("true".into())).unwrap_err().contains("without quotes"));
        assert!(switch(&untyped("yes")).is_err());
        assert_eq!(list(&untyped("audio/*, video/webm,")), Ok(vec!["audio/*".into(), "video/webm".into()]));
        assert!(list(&Raw::Text("audio/*".into())).unwrap_err().contains("list of texts"));
        assert!(list(&Raw::List(vec![Raw::Integer(1)])).is_err());
        assert_eq!(choice(&untyped("b"), &[("a", 1), ("b", 2)]), Ok(2));
        assert_eq!(choice(&untyped("c"), &[("a", 1), ("b", 2)]).unwrap_err(), "must be \"a\" or \"b\"");
    }
}
