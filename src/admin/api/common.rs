//! Members and responses that several operations share.

pub const SUBJECT: (&str, &str) =
    ("subject", "the subject of the token; required if the connection has a token for each subject");
pub const PROFILE: (&str, &str) = ("profile", "the profile; absent: default");
pub const UNKNOWN: (u16, &str) = (404, "no connection has this name, or it has no such profile");
pub const NO_TOKEN: [(u16, &str); 4] = [
    UNKNOWN,
    (409, "the connection is inactive, or its token was refreshed less than ten seconds ago"),
    (424, "the authorization server refused"),
    (503, "the authorization server is unavailable"),
];
