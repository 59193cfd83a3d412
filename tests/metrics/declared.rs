//! Metrics with labels as the sources declare them: a `Family` in a struct, its `register` call, the
//! struct of its labels, and the `labels!` enums of their values.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use syn::visit::{self, Visit};
use syn::{Attribute, Expr, Fields, GenericArgument, ItemEnum, ItemStruct, Lit, Meta, Type};

use crate::{files, read, root};

/// A metric with labels.
pub struct Labelled {
    /// As in the text form, such as `counter`.
    pub kind: String,
    /// In the order of the declaration.
    pub labels: Vec<Label>,
}

/// A label and its values, each with its documentation.
#[derive(Clone, PartialEq)]
pub struct Label {
    pub name: String,
    pub values: Vec<(String, String)>,
}

/// The declarations of one file.
#[derive(Default)]
struct File {
    /// The name of a metric, and the field that holds it.
    registered: Vec<(String, String)>,
    /// By field: the struct of the labels, and the type of the metric.
    families: BTreeMap<String, (String, String)>,
    /// Fields of the structs, with those of their types that have type arguments.
    structs: BTreeMap<String, Vec<(String, Option<Generic>)>>,
}

/// The last name of a type's path, and those of its type arguments.
type Generic = (String, Vec<String>);

impl<'ast> Visit<'ast> for File {
    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        let Fields::Named(fields) = &item.fields else { return };
        let mut named = vec![];
        for field in &fields.named {
            let name = field.ident.as_ref().expect("a named field").to_string();
            let generic = generic(&field.ty);
            if let Some((family, [set, metric, ..])) = generic.as_ref().map(|(a, b)| (a, &b[..]))
                && family == "Family"
            {
                self.families.insert(name.clone(), (set.clone(), metric.to_lowercase()));
            }
            named.push((name, generic));
        }
        self.structs.insert(item.ident.to_string(), named);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        visit::visit_expr_method_call(self, call);
        let arguments: Vec<_> = call.args.iter().collect();
        let [Expr::Lit(name), _, Expr::MethodCall(clone)] = arguments[..] else { return };
        if let (true, Lit::Str(name), Expr::Field(field)) =
            (call.method == "register", &name.lit, &*clone.receiver)
            && let syn::Member::Named(field) = &field.member
        {
            self.registered.push((name.value(), field.to_string()));
        }
    }
}

/// The values of the `labels!` enums, by the enum's name.
#[derive(Default)]
struct Enums(BTreeMap<String, Vec<Vec<(String, String)>>>);

impl<'ast> Visit<'ast> for Enums {
    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        if item.path.segments.last().is_none_or(|name| name.ident != "labels") {
            return;
        }
        let body: syn::File = item.parse_body().expect("labels! holds enums");
        for item in body.items {
            let syn::Item::Enum(ItemEnum { ident, variants, .. }) = item else { continue };
            let values = variants.iter().map(|it| (it.ident.to_string(), documentation(&it.attrs)));
            self.0.entry(ident.to_string()).or_default().push(values.collect());
        }
    }
}

/// The metrics with labels, by the name with which they are registered.
pub fn metrics() -> &'static BTreeMap<String, Labelled> {
    static METRICS: LazyLock<BTreeMap<String, Labelled>> = LazyLock::new(parse);
    &METRICS
}

fn parse() -> BTreeMap<String, Labelled> {
    let mut enums = Enums::default();
    let mut sources = vec![];
    for folder in ["src", "core/src"] {
        for path in files(&root().join(folder), "rs") {
            let source = syn::parse_file(&read(&path)).expect("the sources compile");
            enums.visit_file(&source);
            let mut file = File::default();
            file.visit_file(&source);
            sources.push(file);
        }
    }
    let mut found = BTreeMap::new();
    for file in sources {
        for (name, field) in &file.registered {
            let Some((set, kind)) = file.families.get(field) else { continue };
            let fields = file.structs.get(set).expect("the labels are a struct of the same file");
            let labels = fields.iter().map(|(label, field)| Label {
                name: label.clone(),
                values: match label.as_str() {
                    "node" => vec![("NODE".into(), "The name of a Node.".into())],
                    _ => values(field.as_ref(), &enums)
                        .unwrap_or_else(|| panic!("{name}: {label} is no LabelValue of an enum")),
                },
            });
            let labelled = Labelled { kind: kind.clone(), labels: labels.collect() };
            assert!(found.insert(name.clone(), labelled).is_none(), "{name} is registered twice");
        }
    }
    found
}

/// The values of a field of type `LabelValue<Enum>` or `OptionalLabelValue<Enum>`.
fn values(field: Option<&Generic>, enums: &Enums) -> Option<Vec<(String, String)>> {
    let (wrapper, arguments) = field?;
    let [argument] = &arguments[..] else { return None };
    // Two enums of one name would leave open which one it is.
    let [values] = &enums.0.get(argument)?[..] else { return None };
    let mut values = values.clone();
    match wrapper.as_str() {
        "LabelValue" => {}
        "OptionalLabelValue" => values.push(("None".into(), "No value yet".into())),
        _ => return None,
    }
    Some(values)
}

fn generic(of: &Type) -> Option<Generic> {
    let Type::Path(path) = of else { return None };
    let last = path.path.segments.last()?;
    let syn::PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    let names = arguments.args.iter().filter_map(|argument| match argument {
        GenericArgument::Type(Type::Path(path)) => {
            Some(path.path.segments.last()?.ident.to_string())
        }
        _ => None,
    });
    Some((last.ident.to_string(), names.collect()))
}

/// A doc comment as one line, without the brackets of its links.
fn documentation(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(doc) if doc.path.is_ident("doc") => match &doc.value {
            Expr::Lit(syn::ExprLit { lit: Lit::Str(text), .. }) => {
                Some(text.value().trim().to_owned())
            }
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join(" ").replace("[`", "`").replace("`]", "`")
}
