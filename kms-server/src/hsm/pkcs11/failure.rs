//! The meaning of return codes, and what they do not mean (PKCS #11 v3.0, section 5.1).
//!
//! A forged tag, a damaged blob and a dead disk may have one code (`Quirk::OneCodeForAll`). Such a code is
//! *doubtful* until a canary has spoken.

use cryptoki::{
    context::Function,
    error::{Error, RvError},
};

/// An error, cut by what must happen to the session and the connection.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The data is at fault; the session is well.
    Data(Error),
    /// Tampering or breakage: a canary decides.
    Doubtful(Error),
    /// The session has an operation that was never ended, and no way to end it; or the device failed
    /// where no input was at fault. Close the session; another may do.
    Dirty(String),
    /// All sessions are taken.
    Busy,
    /// The PIN is not to be tried again.
    Refused(String),
    /// Device, connection or KEK is not sound: nothing of this epoch may be used again.
    Broken(String),
    /// As [`Failure::Broken`], for what the library read of the token's files while another process wrote
    /// them: it stays so until the library is initialised anew (`Quirk::ReadsByHalf`). A wrong PIN has an
    /// answer of its own, and is no such fault.
    HalfRead(String),
    /// As [`Failure::Broken`], and what is wrong stays so: the token or its library is not the right one.
    Unfit(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let Error::Pkcs11(code, function) = &error else {
            return Self::Broken(error.to_string());
        };
        // Only these two see what could be forged. The same codes from others are the device's.
        let opens = matches!(function, Function::Decrypt | Function::UnwrapKey);
        match code {
            RvError::EncryptedDataInvalid
            | RvError::EncryptedDataLenRange
            | RvError::DataInvalid
            | RvError::DataLenRange
            | RvError::WrappedKeyInvalid
            | RvError::WrappedKeyLenRange
                if opens =>
            {
                Self::Data(error)
            }
            RvError::GeneralError | RvError::FunctionFailed | RvError::DeviceError if opens => {
                Self::Doubtful(error)
            }
            RvError::GeneralError
            | RvError::FunctionFailed
            | RvError::DeviceError
            | RvError::OperationActive => Self::Dirty(ckr(&error)),
            RvError::SessionCount => Self::Busy,
            // Handles that are none, a library that is not initialised, a token that was pulled, and
            // everything that nobody has thought of.
            _ => Self::Broken(ckr(&error)),
        }
    }
}

impl Failure {
    /// An answer that is not what the token was asked for: told by opening it, or by having it made
    /// twice. Another session may do better.
    pub(crate) fn garbled(what: &str) -> Self {
        Self::Dirty(format!("the token garbled its answer: {what}"))
    }

    /// A fault of a check on what the token has just made itself: nobody can have forged that.
    pub(crate) fn of_own_work(self, what: &str) -> Self {
        match self {
            Self::Data(_) | Self::Doubtful(_) => Self::garbled(what),
            failure => failure,
        }
    }

    /// One line for a person.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Data(error) | Self::Doubtful(error) => ckr(error),
            Self::Busy => "no session is free".to_owned(),
            Self::Dirty(reason)
            | Self::Broken(reason)
            | Self::HalfRead(reason)
            | Self::Refused(reason)
            | Self::Unfit(reason) => reason.clone(),
        }
    }
}

/// `C_Decrypt: CKR_GENERAL_ERROR`: the names of the standard, for the log. The crate's own text is a
/// paragraph for each.
pub(crate) fn ckr(error: &Error) -> String {
    let Error::Pkcs11(code, function) = error else {
        return error.to_string();
    };
    let mut name = String::from("CKR");
    let camel = format!("{code:?}");
    if camel.contains('(') {
        return format!("C_{function:?}: {camel}");
    }
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    format!("C_{function:?}: {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_spelt_as_in_the_standard() {
        let error = Error::Pkcs11(RvError::UnwrappingKeyHandleInvalid, Function::UnwrapKey);
        assert_eq!(ckr(&error), "C_UnwrapKey: CKR_UNWRAPPING_KEY_HANDLE_INVALID");
    }

    #[test]
    fn a_general_error_is_not_taken_for_tampering() {
        let error = Error::Pkcs11(RvError::GeneralError, Function::Decrypt);
        assert!(matches!(Failure::from(error), Failure::Doubtful(_)));
        // Before the token has seen the data, it is no answer about the data.
        for code in [RvError::GeneralError, RvError::DeviceError, RvError::FunctionFailed] {
            for function in [Function::DecryptInit, Function::Encrypt, Function::WrapKey] {
                let failure = Failure::from(Error::Pkcs11(code, function));
                assert!(matches!(failure, Failure::Dirty(_)), "{code:?} {function:?}");
            }
        }
    }

    #[test]
    fn a_handle_that_is_none_breaks_the_connection() {
        for code in [
            RvError::KeyHandleInvalid,
            RvError::ObjectHandleInvalid,
            RvError::UnwrappingKeyHandleInvalid,
            RvError::SessionHandleInvalid,
            RvError::CryptokiNotInitialized,
            RvError::UserNotLoggedIn,
            RvError::DeviceRemoved,
            RvError::TokenNotPresent,
        ] {
            let failure = Failure::from(Error::Pkcs11(code, Function::Decrypt));
            assert!(matches!(failure, Failure::Broken(_)), "{code:?}");
        }
    }
}
