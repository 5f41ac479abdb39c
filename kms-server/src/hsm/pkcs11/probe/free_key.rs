//! Keys without any guard, for controls and for what an intruder brings along.

use cryptoki::{
    error::Error,
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};

/// A template that keeps nothing secret.
pub(crate) fn free(key_type: KeyType) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(key_type),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

/// An AES key of ours that may do everything: a session object.
pub(crate) fn own_key(session: &Session, value: &[u8]) -> Result<ObjectHandle, Error> {
    session.create_object(&[
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Sign(true),
        Attribute::Verify(true),
        Attribute::Wrap(true),
        Attribute::Unwrap(true),
        Attribute::Derive(true),
        Attribute::Value(value.to_vec()),
    ])
}
