//! Finding our keys on the token (C_FindObjects), while nobody makes one (`Quirk::CreateMeetsFind`).

use cryptoki::{
    object::{Attribute, ObjectHandle},
    session::Session,
};

use super::{canary::KeyName, template::OurKey};
use crate::hsm::pkcs11::{
    connection::{
        library::{Library, step},
        lock::read,
    },
    failure::Failure,
};

/// All secret halves of `key` on the token, of the id `name` if there is one.
pub(crate) fn find(
    library: &Library,
    session: &Session,
    key: OurKey,
    name: Option<&KeyName>,
) -> Result<Vec<ObjectHandle>, Failure> {
    let mut template = vec![
        Attribute::Class(key.class()),
        Attribute::Token(true),
        Attribute::Label(key.label().into()),
    ];
    template.extend(name.map(|name| Attribute::Id(name.to_vec())));
    let _quiet = read(&library.objects);
    let found = session.find_objects(&template)?;
    step();
    Ok(found)
}
