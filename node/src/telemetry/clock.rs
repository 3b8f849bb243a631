//! Points in time as text. UTC, always.

/// A civil date and time of day, from seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Civil {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: u8,
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

impl Civil {
    /// Proleptic Gregorian, by Howard Hinnant's `civil_from_days`.
    pub(super) fn from_unix(seconds: i64) -> Civil {
        let days = seconds.div_euclid(86_400);
        let of_day = seconds.rem_euclid(86_400);
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 {
            shifted_month + 3
        } else {
            shifted_month - 9
        };
        Civil {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u8,
            hour: (of_day / 3_600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }
}

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// A second written out in both of the access log's forms, kept until another second comes.
#[derive(Default)]
pub(super) struct CachedSecond {
    second: Option<i64>,
    combined: String,
    iso: String,
}

impl CachedSecond {
    /// `10/Oct/2000:13:55:36 +0000`
    pub(super) fn combined(&mut self, second: i64) -> &str {
        self.refresh(second);
        &self.combined
    }

    /// `2000-10-10T13:55:36`, to be followed by a fraction and `Z`.
    pub(super) fn iso(&mut self, second: i64) -> &str {
        self.refresh(second);
        &self.iso
    }

    fn refresh(&mut self, second: i64) {
        if self.second == Some(second) {
            return;
        }
        let Civil {
            year,
            month,
            day,
            hour,
            minute,
            second: of_minute,
        } = Civil::from_unix(second);
        let name = MONTHS[usize::from(month) - 1];
        self.combined =
            format!("{day:02}/{name}/{year:04}:{hour:02}:{minute:02}:{of_minute:02} +0000");
        self.iso = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{of_minute:02}");
        self.second = Some(second);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn agrees_with_httpdate() {
        // Every 37 hours and some seconds for 140 years, across leap years and the end of a
        // century.
        for step in 0..33_000_u64 {
            let seconds = step * 133_333;
            let http = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
            let Civil {
                year,
                month,
                day,
                hour,
                minute,
                second,
            } = Civil::from_unix(seconds as i64);
            let name = MONTHS[usize::from(month) - 1];
            let ours = format!("{day:02} {name} {year} {hour:02}:{minute:02}:{second:02} GMT");
            assert!(http.ends_with(&ours), "{http} and {ours}");
        }
    }

    #[test]
    fn formats_and_forgets() {
        let mut cached = CachedSecond::default();
        assert_eq!(cached.combined(971_186_136), "10/Oct/2000:13:55:36 +0000");
        assert_eq!(cached.iso(971_186_136), "2000-10-10T13:55:36");
        assert_eq!(cached.iso(971_186_137), "2000-10-10T13:55:37");
        assert_eq!(cached.iso(-1), "1969-12-31T23:59:59");
    }
}
