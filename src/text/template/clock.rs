//! `datetime.strftime`, for `strftime_now`.

use std::time::{SystemTime, UNIX_EPOCH};

use super::meter::{Result, failed};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// `datetime.strftime`, in English and UTC, with glibc's `%-d` for a number without its leading zero.
///
/// Fails at a directive that is not among the common ones.
pub(super) fn strftime(format: &str, time: SystemTime) -> Result<String> {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let weekday = WEEKDAYS[((days + 4) % 7) as usize]; // the epoch was a Thursday
    let month_name = MONTHS[month as usize - 1];
    let hour = second_of_day / 3600;
    let hour_of_12 = (hour + 11) % 12 + 1;

    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut directive = letters.next();
        let is_padded = directive != Some('-');
        if !is_padded {
            directive = letters.next();
        }
        let number =
            |value: u64, width: usize| format!("{value:0width$}", width = if is_padded { width } else { 1 });
        out += &match directive {
            Some('a') => weekday[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('B') => month_name.to_owned(),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('H') => number(hour, 2),
            Some('I') => number(hour_of_12, 2),
            Some('j') => number(days - days_before(year) + 1, 3),
            Some('m') => number(month, 2),
            Some('M') => number(second_of_day / 60 % 60, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('S') => number(second_of_day % 60, 2),
            Some('T') => format!("{hour:02}:{:02}:{:02}", second_of_day / 60 % 60, second_of_day % 60),
            Some('y') => number(year % 100, 2),
            Some('Y') => number(year, 4),
            Some('%') => "%".to_owned(),
            _ => {
                return failed(
                    "strftime_now does not know a directive of its format: use %Y, %m, %d, %B or the like",
                );
            }
        };
    }
    Ok(out)
}

/// Days since 1970-01-01 → year, month (1 to 12), day (1 to 31).
fn civil_date(days: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days / 366; // never past the right one
    while days_before(year + 1) <= days {
        year += 1;
    }
    let is_leap = days_before(year + 1) - days_before(year) == 366;
    let mut day = days - days_before(year);
    let mut month = 1;
    for length in [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before(year: u64) -> u64 {
    let leap_days = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// `time.strftime(format, time.gmtime(seconds))` of CPython 3.11 made the expected strings.
    #[test]
    fn dates_are_what_python_writes() {
        let formatted =
            |format: &str, seconds| strftime(format, UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        assert_eq!(formatted("%d %b %Y", 1_721_995_200), "26 Jul 2024");
        assert_eq!(
            formatted("%A, %B %-d, %Y %I:%M:%S %p", 951_782_399),
            "Monday, February 28, 2000 11:59:59 PM"
        );
        assert_eq!(formatted("%Y-%m-%d %j %a", 951_782_400), "2000-02-29 060 Tue");
        assert_eq!(formatted("%F %T %y%%", 4_107_542_399), "2100-02-28 23:59:59 00%");
        assert_eq!(formatted("%F %j", 4_107_542_400), "2100-03-01 060");
        assert_eq!(formatted("%F %e %H %I", 0), "1970-01-01  1 00 12");
        assert_eq!(formatted("%F %j", 1_735_603_200), "2024-12-31 366");
        for unknown in ["%Q", "%", "%-"] {
            assert!(strftime(unknown, UNIX_EPOCH).is_err(), "{unknown}");
        }
    }
}
