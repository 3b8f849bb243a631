//! The lies an origin can tell: one table, each with its sentence.
//!
//! A lie takes the honest reply to the request and bends it. `told` bends; this file says what
//! there is. Where the sentence names no body, the body is the honest one. Over HTTP/2 only what
//! the protocol can express is told: heads, validators, ranges, and cut bodies as a reset stream.

mod told;

use std::fmt;
use std::str::FromStr;

pub(crate) use told::lying_reply;

/// What a lie is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LieClass {
    /// The body ends before its time, or the connection does.
    Cut,
    /// Where the body ends is said wrongly, twice or not at all.
    Length,
    /// The chunked coding is broken or abused.
    Chunk,
    /// The head is no head, or too much of one.
    Head,
    /// Interim answers and upgrades that nobody asked for.
    Interim,
    /// Ranges that are not what was asked or not what they say.
    Range,
    /// Validators and 304 that do not fit the bytes.
    Validator,
    /// Dates, ages and directives from another world.
    Freshness,
    /// Fields that try to steer, flood or poison a cache.
    Poison,
    /// Never an end.
    Stall,
}

macro_rules! lies {
    ($($class:ident { $($lie:ident $name:literal $about:literal)* })*) => {
        /// A lie. The sentence of each also comes from [`about`](Lie::about), and `/lies` lists
        /// them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Lie {
            $($(#[doc = $about] $lie,)*)*
        }

        impl Lie {
            /// Every lie, in the order of the table.
            pub const ALL: &'static [Lie] = &[$($(Lie::$lie,)*)*];

            /// Its name in URLs.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $($(Lie::$lie => $name,)*)* }
            }

            /// What it does, in a sentence.
            #[must_use]
            pub fn about(self) -> &'static str {
                match self { $($(Lie::$lie => $about,)*)* }
            }

            #[must_use]
            pub fn class(self) -> LieClass {
                match self { $($(Lie::$lie => LieClass::$class,)*)* }
            }
        }
    };
}

lies! {
    Cut {
        Truncated "truncated" "Content-Length of the whole, half of the body, FIN."
        TruncatedReset "truncated-reset" "Content-Length of the whole, half of the body, RST."
        TruncatedByOne "truncated-by-one" "The last byte of the body is missing, FIN."
        TruncatedChunked "truncated-chunked" "Chunked, half of the body, no last chunk, FIN."
        TruncatedInChunk "truncated-in-chunk" "Chunked, FIN in the middle of a chunk."
        TruncatedBeforeLastCrlf "truncated-before-last-crlf" "Chunked, all of the body, the last chunk without its final empty line, FIN."
        TruncatedCloseReset "truncated-close-reset" "Close-delimited, half of the body, RST instead of FIN."
        TruncatedHead "truncated-head" "Half of the head, FIN."
        HeadOnly "head-only" "The whole head with its Content-Length, none of the body, FIN."
        EmptyReply "empty-reply" "FIN without a byte."
        ResetReply "reset-reply" "RST without a byte."
        KeepAliveClosed "keep-alive-closed" "A whole answer that promises to keep the connection, then FIN."
        CloseKept "close-kept" "Connection: close, and then the connection stays open without a word."
    }
    Length {
        OverLong "over-long" "A hundred bytes more than Content-Length says, then keeps the connection."
        OverLongClose "over-long-close" "A hundred bytes more than Content-Length says, then FIN."
        SecondResponse "second-response" "A second whole response follows unasked on the same connection, with another body."
        BytesAfterChunks "bytes-after-chunks" "Bytes follow the last chunk."
        BodyOnNoContent "body-on-no-content" "204 with a body behind it."
        BodyOnNotModified "body-on-not-modified" "304 with a body behind it."
        BodyOnHead "body-on-head" "A HEAD request is answered with the body."
        LengthAndChunked "length-and-chunked" "Content-Length (of half) and Transfer-Encoding: chunked; the body is chunked."
        ChunkedAndLength "chunked-and-length" "The same with Transfer-Encoding first and the right Content-Length; the body is not chunked."
        TwoLengths "two-lengths" "Two Content-Length lines that differ: the whole, and half."
        TwoLengthsSame "two-lengths-same" "Two Content-Length lines with the same right value."
        LengthList "length-list" "Content-Length: n, n/2."
        LengthListSame "length-list-same" "Content-Length: n, n."
        LengthNegative "length-negative" "Content-Length: -n."
        LengthPlus "length-plus" "Content-Length: +n."
        LengthHex "length-hex" "Content-Length: 0xn."
        LengthFraction "length-fraction" "Content-Length: n.0"
        LengthOverflow "length-overflow" "Content-Length: 2^64 + n; a parser that wraps sees n."
        LengthHuge "length-huge" "Content-Length: 2^63 - 1, the honest body, then silence."
        LengthGarbage "length-garbage" "Content-Length: many."
        LengthEmpty "length-empty" "Content-Length without a value."
        LengthInnerSpace "length-inner-space" "Content-Length with a space between its digits."
        UnknownCoding "unknown-coding" "Transfer-Encoding: br, the plain body, FIN."
        IdentityCoding "identity-coding" "Transfer-Encoding: identity with the right Content-Length."
        IdentityChunked "identity-chunked" "Transfer-Encoding: identity, chunked; the body is chunked."
        ChunkedTwice "chunked-twice" "Transfer-Encoding: chunked, chunked; the body is chunked once."
        ChunkedNotLast "chunked-not-last" "Transfer-Encoding: chunked, gzip; the plain body, FIN."
        GzipChunked "gzip-chunked" "Transfer-Encoding: gzip, chunked; the chunks hold the plain body."
        TwoCodingLines "two-coding-lines" "Transfer-Encoding: chunked on one line, identity on the next; the body is chunked."
        CodingMisspelt "coding-misspelt" "Transfer-Encoding: xchunked; the body is chunked."
        CodingVerticalTab "coding-vertical-tab" "Transfer-Encoding: chunked with a vertical tab before the value; the body is chunked."
        ChunkedOnHttp10 "chunked-on-http10" "An HTTP/1.0 answer with Transfer-Encoding: chunked; the body is chunked."
        ChunkedOnNoContent "chunked-on-no-content" "204 with Transfer-Encoding: chunked and an empty chunked body."
    }
    Chunk {
        ChunkSizeGarbage "chunk-size-garbage" "The second chunk's size is ZZ."
        ChunkSizeOverflow "chunk-size-overflow" "The second chunk's size is 1 0000 0000 0000 0005 (hexadecimal), which wraps to 5."
        ChunkSizeNegative "chunk-size-negative" "The second chunk's size is -5."
        ChunkSizePrefix "chunk-size-prefix" "The second chunk's size is 0x5."
        ChunkSizeSpace "chunk-size-space" "A space before each chunk's size."
        ChunkSizeEmpty "chunk-size-empty" "The second chunk's size line is empty."
        ChunkBareLf "chunk-bare-lf" "Chunk lines end in a bare LF."
        ChunkNoCrlf "chunk-no-crlf" "No CRLF after a chunk's data."
        ChunkTooLong "chunk-too-long" "A chunk holds three bytes more than its size."
        ChunkExtensionHuge "chunk-extension-huge" "A chunk extension of a mebibyte."
        ChunkExtensionMany "chunk-extension-many" "One-byte chunks, each with four kibibytes of extension."
        ChunkExtensionLf "chunk-extension-lf" "A chunk extension with a bare LF in it (TERM.EXT)."
        ChunkTrailerBomb "chunk-trailer-bomb" "Ten thousand trailer fields."
        ChunkTrailerHuge "chunk-trailer-huge" "A trailer field of a mebibyte."
        ChunkTrailerFraming "chunk-trailer-framing" "Trailers that name Content-Length, Transfer-Encoding, Cache-Control and Host."
        ChunkTrailerBareLf "chunk-trailer-bare-lf" "Trailer lines end in a bare LF."
        ChunkOneByte "chunk-one-byte" "Every chunk is one byte; right, and heavy."
        ChunkZeroEarly "chunk-zero-early" "The last chunk comes after half of the body, and the other half follows."
        ChunkNever "chunk-never" "All of the body, and then chunk extensions for ever: a size line that never ends (to 64 MiB)."
    }
    Head {
        BareLf "bare-lf" "The head's lines end in a bare LF."
        BareCr "bare-cr" "A bare CR inside a field's value."
        NulInValue "nul-in-value" "A NUL inside a field's value."
        NulInName "nul-in-name" "A NUL inside a field's name."
        ControlInValue "control-in-value" "A control character (0x01) inside a field's value."
        ObsFold "obs-fold" "A field folded over two lines."
        SpaceBeforeColon "space-before-colon" "A space between a field's name and its colon."
        SpaceBeforeFirst "space-before-first" "The first field line begins with a space."
        NoColon "no-colon" "A line without a colon."
        EmptyName "empty-name" "A field without a name."
        SpaceInName "space-in-name" "A field's name with a space inside."
        ObsText "obs-text" "A field's value in Latin-1: old, and allowed."
        HeaderBomb "header-bomb" "Ten thousand fields."
        HeaderHuge "header-huge" "A field of a mebibyte."
        HeaderEndless "header-endless" "Fields without an end (to 64 MiB)."
        StatusLineGarbage "status-line-garbage" "The status line is no status line."
        StatusTwoDigits "status-two-digits" "Status 20."
        StatusFourDigits "status-four-digits" "Status 2000."
        Status999 "status-999" "Status 999."
        Status000 "status-000" "Status 000."
        Version09 "version-09" "The body without any head (HTTP/0.9)."
        Version2 "version-2" "HTTP/2.0 on the status line."
        Version12 "version-12" "HTTP/1.2 on the status line: to be read as 1.1."
        Version9 "version-9" "HTTP/9.9 on the status line."
        Icy "icy" "ICY 200 OK."
        NoReason "no-reason" "A status line that ends after the code, without the space."
        ReasonHuge "reason-huge" "A reason phrase of 64 KiB."
        ReasonControl "reason-control" "A NUL in the reason phrase."
        BlankLinesFirst "blank-lines-first" "Empty lines before the status line."
        GarbageFirst "garbage-first" "Random bytes before the status line."
        TlsAnswer "tls-answer" "A TLS alert in place of the answer."
        HopFields "hop-fields" "Keep-Alive, Proxy-Connection, Proxy-Authenticate, TE and Trailer, all of one hop."
        ConnectionNominates "connection-nominates" "Connection nominates Content-Length, Cache-Control, ETag, Age and Date."
        ConnectionBomb "connection-bomb" "Connection nominates ten thousand names."
    }
    Interim {
        ThousandHints "thousand-hints" "A thousand 103, then the answer."
        EndlessContinue "endless-continue" "100 without an end (to a million)."
        ContinueUnasked "continue-unasked" "A 100 that nobody waits for, then the answer."
        SwitchUnasked "switch-unasked" "101 that nobody asked for, then garbage."
        SwitchOther "switch-other" "101 to a protocol that was not offered."
        HintsWithLength "hints-with-length" "103 with Content-Length: 5, then the answer."
        HintsWithChunked "hints-with-chunked" "103 with Transfer-Encoding: chunked, then the answer."
        HintsOnly "hints-only" "103 and FIN."
        HintsHuge "hints-huge" "A 103 with a field of a mebibyte, then the answer."
        InterimUnknown "interim-unknown" "An interim 199, then the answer: to be skipped."
        HintsPoison "hints-poison" "103 with Set-Cookie, Cache-Control: public and ETag that the answer lacks."
        UpgradeOffered "upgrade-offered" "200 with Upgrade: h2c and Connection: upgrade."
    }
    Range {
        PartialUnasked "partial-unasked" "206 with the first half to a request without Range."
        PartialUnaskedWhole "partial-unasked-whole" "206 with the whole body to a request without Range."
        RangeShifted "range-shifted" "Content-Range and bytes begin a byte later than asked."
        RangeMisnamed "range-misnamed" "The bytes asked for, under a Content-Range of other ones."
        RangeLonger "range-longer" "More than asked: to the end of the body."
        RangeShorter "range-shorter" "Less than asked: half of it, rightly named."
        RangeWhole "range-whole" "206 with the whole body, rightly named."
        RangeIgnored "range-ignored" "Accept-Ranges: bytes, and the whole with 200 to each range."
        RangeTotalWrong "range-total-wrong" "Content-Range says a total a thousand bytes too long."
        RangeTotalChanges "range-total-changes" "Content-Range says another total each time."
        RangeTotalUnknown "range-total-unknown" "Content-Range with * as total: allowed."
        RangeTotalShort "range-total-short" "Content-Range whose total is within the range."
        RangeBackwards "range-backwards" "Content-Range whose end is before its start."
        RangeUnnamed "range-unnamed" "206 without Content-Range."
        RangeGarbage "range-garbage" "206 with Content-Range: bytes many."
        RangeUnit "range-unit" "206 with Content-Range in another unit."
        RangeTwice "range-twice" "206 with two Content-Range lines that differ."
        RangeLength "range-length" "206 whose Content-Length is shorter than its Content-Range; the body follows Content-Length."
        RangeOverflow "range-overflow" "Content-Range with numbers beyond 2^64."
        RangeTruncated "range-truncated" "206, half of the bytes, FIN."
        RangeOtherBody "range-other-body" "206 with the bytes of another version of the body under the same validators."
        RangeOtherTag "range-other-tag" "Each range with another ETag, and the bytes of another version."
        RangeNoTag "range-no-tag" "The whole has validators, ranges have none."
        RangeWeakTag "range-weak-tag" "The whole has a strong ETag, ranges a weak one of the same name."
        RangeRefused "range-refused" "416 to every range."
        RangeRefusedShrunk "range-refused-shrunk" "416 with a total of half the body."
        RangeMultipart "range-multipart" "multipart/byteranges to a single range."
        RangeMultipartBroken "range-multipart-broken" "multipart/byteranges whose boundary is not the one it names."
        RangeMultipartOther "range-multipart-other" "multipart/byteranges with a part that nobody asked for."
        RangeIfRangeIgnored "range-if-range-ignored" "206 although If-Range does not hold, with the new bytes and the new ETag."
        RangeServerError "range-server-error" "500 to every range, 200 to the whole."
    }
    Validator {
        TagPerRequest "tag-per-request" "Another ETag each time, the same body."
        BodyPerRequest "body-per-request" "The same ETag each time, another body."
        BothPerRequest "both-per-request" "Another ETag and another body each time."
        LengthPerRequest "length-per-request" "The same ETag each time, the body a byte shorter each time."
        TagUnquoted "tag-unquoted" "An ETag without quotes."
        TagOpen "tag-open" "An ETag whose quote does not close."
        TagTwice "tag-twice" "Two ETag lines that differ."
        TagEmpty "tag-empty" "ETag: \"\" for every body: allowed, and useless."
        TagHuge "tag-huge" "An ETag of 64 KiB."
        TagWeakBytes "tag-weak-bytes" "The same weak ETag each time, another body: allowed."
        NotModifiedUnasked "not-modified-unasked" "304 to a request without a condition."
        NotModifiedOther "not-modified-other" "304 with an ETag that the request did not name."
        NotModifiedAlways "not-modified-always" "304 to any condition, whatever it names."
        NotModifiedPoison "not-modified-poison" "304 with Content-Length: 1, Content-Encoding: gzip, Content-Range and Content-Type: text/html."
        NotModifiedBare "not-modified-bare" "304 without Date, validators or Cache-Control."
        ConditionIgnored "condition-ignored" "The whole with 200 whatever the condition: allowed."
        PreconditionUnasked "precondition-unasked" "412 to a request without a condition."
        ModifiedInFuture "modified-in-future" "Last-Modified in ten years."
        ModifiedGarbage "modified-garbage" "Last-Modified: yesterday."
        HeadOtherLength "head-other-length" "HEAD says a thousand bytes more than GET."
        HeadOtherTag "head-other-tag" "HEAD says another ETag than GET."
    }
    Freshness {
        DateInFuture "date-in-future" "Date in ten years."
        DateLongAgo "date-long-ago" "Date in 1990."
        DateBeforeEpoch "date-before-epoch" "Date in 1960."
        DateGarbage "date-garbage" "Date: now."
        DateMissing "date-missing" "No Date."
        DateTwice "date-twice" "Two Date lines."
        AgeHuge "age-huge" "Age: 99999999999999999999."
        AgeNegative "age-negative" "Age: -3600."
        AgeGarbage "age-garbage" "Age: old."
        AgeTwice "age-twice" "Two Age lines, 0 and 86400."
        AgeFromFuture "age-from-future" "Date in ten years, with Age: 60."
        MaxAgeHuge "max-age-huge" "max-age=99999999999999999999."
        MaxAgeNegative "max-age-negative" "max-age=-1."
        MaxAgeGarbage "max-age-garbage" "max-age=long."
        MaxAgeTwice "max-age-twice" "max-age=3600, max-age=0."
        MaxAgeQuoted "max-age-quoted" "max-age=\"3600\"."
        MaxAgeSpaced "max-age-spaced" "max-age = 3600."
        ExpiresGarbage "expires-garbage" "Expires: 0, and nothing else about freshness."
        ExpiresTwice "expires-twice" "Two Expires lines, past and future."
        DirectiveCase "directive-case" "Cache-Control: No-STORE, Max-Age=3600."
        DirectiveInQuotes "directive-in-quotes" "Cache-Control: ext=\"no-store, private\", max-age=3600: the quoted words are no directives."
        DirectiveOpenQuote "directive-open-quote" "Cache-Control: max-age=3600, private=\"set-cookie."
        DirectiveBomb "directive-bomb" "Cache-Control with ten thousand directives, the last of them no-store."
        TargetedInvalid "targeted-invalid" "CDN-Cache-Control that is no structured field, beside Cache-Control: no-store."
        PragmaOnly "pragma-only" "Pragma: no-cache and nothing else."
    }
    Poison {
        CookieWithPublic "cookie-with-public" "Set-Cookie with Cache-Control: public, max-age=3600; another cookie for each request."
        VaryStar "vary-star" "Vary: * with max-age=3600."
        VaryBomb "vary-bomb" "Vary names a thousand fields."
        VaryFlips "vary-flips" "Vary names another field each time."
        VaryInvalid "vary-invalid" "Vary: @, accept."
        EncodingFalse "encoding-false" "Content-Encoding: gzip over a plain body."
        EncodingUnknown "encoding-unknown" "Content-Encoding: rot13."
        LinkBomb "link-bomb" "Ten thousand Link headers with rel=prefetch."
        LinkInside "link-inside" "Link rel=prefetch to 169.254.169.254, localhost and a file."
        LocationOther "location-other" "Location and Content-Location on another host, with max-age=3600."
        LocationSplit "location-split" "Location with an encoded CRLF and a header behind it."
        ErrorCacheable "error-cacheable" "500 with max-age=3600."
        StatusFlips "status-flips" "200 and 503 in turns."
        LoopSelf "loop-self" "Via and CDN-Loop in the answer, naming caje."
        CacheStatusForged "cache-status-forged" "Cache-Status: \"caje/lhr\"; hit; ttl=999, from the origin."
        TypeMissing "type-missing" "A body without Content-Type."
        TypeTwice "type-twice" "Two Content-Type lines, text/plain and text/html."
    }
    Stall {
        StallHead "stall-head" "No byte of an answer."
        StallInHead "stall-in-head" "Half of the head, then silence."
        StallBody "stall-body" "Half of the body, then silence."
        StallEnd "stall-end" "All of the body but the last chunk, then silence."
        DripHead "drip-head" "The head, a byte each 100 ms."
        DripBody "drip-body" "The body, a byte each 100 ms."
        DripInterim "drip-interim" "103 each 100 ms for ever, never an answer."
    }
}

/// No lie has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownLie(String);

impl fmt::Display for UnknownLie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no lie is called {:?}; /lies lists them", self.0)
    }
}

impl std::error::Error for UnknownLie {}

impl FromStr for Lie {
    type Err = UnknownLie;

    fn from_str(name: &str) -> Result<Lie, UnknownLie> {
        let found = Lie::ALL.iter().find(|lie| lie.name() == name);
        found.copied().ok_or_else(|| UnknownLie(name.to_owned()))
    }
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_table_is_sound() {
        assert!(Lie::ALL.len() >= 100, "{} lies", Lie::ALL.len());
        let names: HashSet<_> = Lie::ALL.iter().map(|lie| lie.name()).collect();
        assert_eq!(names.len(), Lie::ALL.len(), "two lies share a name");
        for lie in Lie::ALL {
            assert_eq!(lie.name().parse(), Ok(*lie));
            assert!(
                lie.about().ends_with('.') || *lie == Lie::LengthFraction,
                "{lie}"
            );
        }
    }
}
