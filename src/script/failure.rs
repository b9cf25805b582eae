//! Errors of compiling and of calling a script.
//!
//! Invariants: a message has at most [`MESSAGE_CHARS_MAX`] printable ASCII characters; it names identifiers and types,
//! never values, except for a text that the script itself threw.

use std::time::Duration;

use rhai::{Dynamic, EvalAltResult, LexError, Map, ParseError, ParseErrorType, Position};

use super::value::kind;

/// Maximum length of a message.
pub const MESSAGE_CHARS_MAX: usize = 300;
/// Longest wait that a script may request.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Why a script was rejected. Line and column count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ScriptError {
    pub line: Option<usize>,
    pub column: Option<usize>,
    pub message: String,
}

/// Why a call failed. Line and column count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// `throw "text"`.
    #[error("the script threw: {message}")]
    Thrown { message: String, line: Option<usize>, column: Option<usize> },
    /// `throw #{retry_after: seconds}`.
    #[error("the script requested a retry after {} s", after.as_secs_f32())]
    RetryLater { after: Duration, message: Option<String> },
    /// Anything else: an error in the script, an exceeded bound, an unusable result.
    #[error("the script failed: {message}")]
    Error { message: String, line: Option<usize>, column: Option<usize> },
}

impl ScriptError {
    pub(super) fn without_position(message: impl AsRef<str>) -> ScriptError {
        ScriptError::at(Position::NONE, message)
    }

    pub(super) fn at(at: Position, message: impl AsRef<str>) -> ScriptError {
        ScriptError { line: at.line(), column: at.position(), message: printable(message.as_ref()) }
    }
}

impl From<ParseError> for ScriptError {
    fn from(ParseError(kind, at): ParseError) -> ScriptError {
        let message = match *kind {
            ParseErrorType::BadInput(LexError::UnterminatedString) => "a string is not terminated".into(),
            ParseErrorType::BadInput(LexError::StringTooLong(_)) => "a string is too long".into(),
            // Includes disabled and reserved words.
            ParseErrorType::BadInput(LexError::ImproperSymbol(word, _)) if is_word(&word) => {
                format!("`{word}` is not available here")
            }
            // The other errors quote the source.
            ParseErrorType::BadInput(_) => "a literal or a symbol that Rhai does not know".into(),
            ParseErrorType::DuplicatedProperty(_) => "a map has the same key twice".into(),
            known => known.to_string(),
        };
        ScriptError::at(at, message)
    }
}

impl Failure {
    /// Without a position in the script.
    pub(super) fn error(message: impl AsRef<str>) -> Failure {
        Failure::error_at(Position::NONE, message)
    }

    fn error_at(at: Position, message: impl AsRef<str>) -> Failure {
        Failure::Error { message: printable(message.as_ref()), line: at.line(), column: at.position() }
    }

    pub(super) fn from_error(error: &EvalAltResult) -> Failure {
        let error = error.unwrap_inner();
        match error {
            EvalAltResult::ErrorRuntime(thrown, at) => Failure::thrown(thrown, *at),
            _ => Failure::error_at(error.position(), describe(error)),
        }
    }

    /// Where the script failed, without a text that the script can choose: a thrown one, or the name of a function.
    pub fn without_text(&self) -> String {
        let (what, line) = match self {
            Failure::Thrown { line, .. } => ("threw", *line),
            Failure::Error { line, .. } => ("failed", *line),
            Failure::RetryLater { .. } => ("requested a retry", None),
        };
        let at = line.map_or_else(String::new, |line| format!(" at line {line}"));
        format!("the script {what}{at}")
    }

    fn thrown(thrown: &Dynamic, at: Position) -> Failure {
        let mut message = thrown.as_immutable_string_ref().ok().map(|text| printable(&text));
        if let Ok(map) = thrown.as_map_ref() {
            message = message_of(&map);
            if let Some(seconds) = map.get("retry_after") {
                return match retry_after(seconds) {
                    Some(after) => Failure::RetryLater { after, message },
                    None => Failure::error_at(at, "threw a retry_after that is not a non-negative number of seconds"),
                };
            }
        }
        let message = message.unwrap_or_else(|| format!("{} instead of a string", kind(thrown)));
        Failure::Thrown { message, line: at.line(), column: at.position() }
    }
}

fn message_of(thrown: &Map) -> Option<String> {
    thrown.get("message")?.as_immutable_string_ref().ok().map(|text| printable(&text))
}

fn retry_after(seconds: &Dynamic) -> Option<Duration> {
    let after = match (seconds.as_int(), seconds.as_float()) {
        (Ok(seconds), _) => Duration::from_secs(u64::try_from(seconds).ok()?),
        // Values too large for a `Duration` are capped as well.
        (_, Ok(seconds)) if seconds >= 0.0 => Duration::try_from_secs_f64(seconds).unwrap_or(RETRY_AFTER_MAX),
        _ => return None,
    };
    Some(after.min(RETRY_AFTER_MAX))
}

/// Describes the error by identifiers and types, without values.
fn describe(error: &EvalAltResult) -> String {
    use EvalAltResult as E;
    match error {
        E::ErrorTooManyOperations(_) => "too many operations".into(),
        E::ErrorTerminated(..) => format!("runs longer than {} ms", super::CALL_TIME_MAX.as_millis()),
        E::ErrorStackOverflow(_) => "too many nested calls".into(),
        E::ErrorTooManyVariables(_) => "too many variables".into(),
        E::ErrorDataTooLarge(what, _) => format!("{what} too large"),
        E::ErrorVariableNotFound(name, _) => format!("no variable {name}"),
        E::ErrorFunctionNotFound(signature, _) => format!("no function {signature}"),
        E::ErrorPropertyNotFound(name, _) => format!("no property {name}"),
        E::ErrorAssignmentToConstant(name, _) => format!("{name} is constant"),
        E::ErrorIndexNotFound(..) => "no such index".into(),
        E::ErrorArrayBounds(..) | E::ErrorStringBounds(..) | E::ErrorBitFieldBounds(..) => "index out of bounds".into(),
        E::ErrorIndexingType(types, _) => format!("no index of {types}"),
        E::ErrorMismatchDataType(wanted, given, _) | E::ErrorMismatchOutputType(wanted, given, _) => {
            match (wanted.as_str(), given.as_str()) {
                (wanted, "") => format!("expects {wanted}"),
                ("", given) => format!("does not accept {given}"),
                (wanted, given) => format!("expects {wanted}, not {given}"),
            }
        }
        E::ErrorFor(_) => "`for` needs an iterable value".into(),
        // The message of this error quotes its operands.
        E::ErrorArithmetic(..) => "arithmetic error".into(),
        E::ErrorDotExpr(..) => "a misplaced `.`".into(),
        _ => "an error in the script".into(),
    }
}

fn is_word(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    text.chars().take(MESSAGE_CHARS_MAX).map(shown).collect()
}
