//! Percent-encoding, and edits of a URL's query that keep the bytes of other parameters. Parameter names are compared
//! after decoding.

use http::uri::PathAndQuery;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use url::form_urlencoded;

/// All bytes but the unreserved characters (RFC 3986 §2.3), which mean the same in URLs and forms.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `text`, percent-encoded.
pub fn percent_encoded(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, RESERVED)
}

/// Counts the parameters whose name is wanted.
pub fn count(path: &PathAndQuery, is_wanted: impl Fn(&str) -> bool) -> usize {
    parameters(path).filter(|parameter| is_named(parameter, &is_wanted)).count()
}

/// Removes the parameters whose name is unwanted, and returns their number.
pub fn remove(path: &mut PathAndQuery, is_unwanted: impl Fn(&str) -> bool) -> usize {
    let removed = count(path, &is_unwanted);
    if removed == 0 {
        return 0;
    }
    let kept: Vec<_> = parameters(path).filter(|parameter| !is_named(parameter, &is_unwanted)).collect();
    let mark = if kept.is_empty() { "" } else { "?" };
    let shorter = PathAndQuery::try_from([path.path(), mark, &kept.join("&")].concat());
    *path = shorter.expect("a valid path stays valid with fewer parameters");
    removed
}

/// Appends a parameter; `None` if the result would exceed the maximum length of a [`PathAndQuery`].
pub fn append(path: &PathAndQuery, name: &str, value: &str) -> Option<PathAndQuery> {
    let separator = match path.query() {
        None => "?",
        Some("") => "",
        Some(_) => "&",
    };
    let added = form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish();
    PathAndQuery::try_from([path.as_str(), separator, &added].concat()).ok()
}

fn parameters(path: &PathAndQuery) -> impl Iterator<Item = &str> {
    path.query().into_iter().flat_map(|query| query.split('&'))
}

fn is_named(parameter: &str, is_wanted: impl Fn(&str) -> bool) -> bool {
    form_urlencoded::parse(parameter.as_bytes()).next().is_some_and(|(name, _)| is_wanted(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_found_in_any_encoding_and_the_others_keep_their_bytes() {
        #[track_caller]
        fn check(path: &str, found: usize, without: &str, with: &str) {
            let mut path = PathAndQuery::try_from(path).unwrap();
            let is_wanted = |name: &str| name == "access_token";
            assert_eq!(count(&path, is_wanted), found);
            assert_eq!(remove(&mut path, is_wanted), found);
            assert_eq!(path, without);
            assert_eq!(append(&path, "access_token", "t/1:2!").unwrap(), with);
        }
        check("/x", 0, "/x", "/x?access_token=t%2F1%3A2%21");
        check("/x?", 0, "/x?", "/x?access_token=t%2F1%3A2%21");
        check("/x?a=%20b&c", 0, "/x?a=%20b&c", "/x?a=%20b&c&access_token=t%2F1%3A2%21");
        check("/x?access_token=old", 1, "/x", "/x?access_token=t%2F1%3A2%21");
        check(
            "/x?a=1&acc%65ss_token=old&&b=%7e'+&access_token",
            2,
            "/x?a=1&&b=%7e'+",
            "/x?a=1&&b=%7e'+&access_token=t%2F1%3A2%21",
        );
        check("/x?Access_Token=y", 0, "/x?Access_Token=y", "/x?Access_Token=y&access_token=t%2F1%3A2%21");
    }

    #[test]
    fn a_parameter_that_makes_the_target_too_long_is_not_appended() {
        let path = PathAndQuery::from_static("/x");
        assert_eq!(append(&path, "t", &"a".repeat(65_529)).unwrap().as_str().len(), 65_534);
        assert_eq!(append(&path, "t", &"a".repeat(65_531)), None);
    }
}
