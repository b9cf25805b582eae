//! Values read from Redis by the scripts.

use redis::{FromRedisValue, ParsingError, Value as Reply};

use crate::store::StoreError;

/// Values above this size are not fetched; Keybearer writes none.
pub const VALUE_BYTES_MAX: usize = 256 * 1024;

const FOREIGN: &str = "the value under its key in Redis was not written by Keybearer";
const TOO_LARGE: &str = "the value under its key in Redis is larger than any Keybearer record";

pub enum Value {
    None,
    Bytes(Vec<u8>),
    /// A Redis type that Keybearer does not store under this key.
    Foreign,
    /// Larger than [`VALUE_BYTES_MAX`].
    Large,
}

impl Value {
    /// The bytes of the value; errors name `record`. `None`: there is no value.
    pub fn bytes(self, record: impl Fn() -> String) -> Result<Option<Vec<u8>>, StoreError> {
        match self {
            Value::None => Ok(None),
            Value::Bytes(bytes) => Ok(Some(bytes)),
            Value::Foreign => Err(StoreError::Damaged { record: record(), why: FOREIGN }),
            Value::Large => Err(StoreError::Damaged { record: record(), why: TOO_LARGE }),
        }
    }
}

impl FromRedisValue for Value {
    fn from_redis_value(reply: Reply) -> Result<Value, ParsingError> {
        match reply {
            Reply::BulkString(bytes) => Ok(Value::Bytes(bytes)),
            Reply::Int(1) => Ok(Value::Foreign),
            Reply::Int(2) => Ok(Value::Large),
            Reply::Int(_) | Reply::Nil => Ok(Value::None),
            _ => Err(ParsingError::from("neither a value nor a code of the scripts")),
        }
    }
}
