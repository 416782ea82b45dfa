# The same images with buildx, from the checkout:
#   docker buildx bake --file images/docker-bake.hcl [TARGET...]

variable "REPOSITORY" { default = "localhost/modelmill" }
variable "VERSION" { default = "0.1.0" }
variable "REVISION" { default = "unknown" }
variable "BASE_IMAGE" { default = "" }
variable "PYTHON" { default = "3.12" }

group "default" {
  targets = ["light", "finetune", "merge", "quantize", "infer"]
}

group "runtimes" {
  targets = ["light-cml", "finetune-cml", "quantize-cml"]
}

target "image" {
  context = "."
  args = {
    VERSION  = VERSION
    REVISION = REVISION
  }
}

target "base" {
  inherits   = ["image"]
  dockerfile = "images/base/Dockerfile"
  args       = { BASE_IMAGE = BASE_IMAGE == "" ? null : BASE_IMAGE }
}

target "builder" {
  inherits   = ["image"]
  dockerfile = "images/builder/Dockerfile"
  contexts   = { base = "target:base" }
}

target "modelmill" {
  inherits   = ["image"]
  dockerfile = "images/modelmill/Dockerfile"
  contexts   = { builder = "target:builder" }
}

target "torch" {
  inherits   = ["image"]
  dockerfile = "images/torch/Dockerfile"
  contexts   = { base = "target:base", builder = "target:builder" }
}

target "without-torch" {
  matrix     = { leaf = ["light", "infer-vllm"] }
  name       = leaf
  inherits   = ["image"]
  dockerfile = "images/${leaf}/Dockerfile"
  contexts   = { base = "target:base", builder = "target:builder", modelmill = "target:modelmill" }
  tags       = ["${REPOSITORY}-${leaf}:${VERSION}"]
}

target "on-torch" {
  matrix     = { leaf = ["finetune", "merge", "quantize", "infer"] }
  name       = leaf
  inherits   = ["image"]
  dockerfile = "images/${leaf}/Dockerfile"
  contexts   = { torch = "target:torch", builder = "target:builder", modelmill = "target:modelmill" }
  tags       = ["${REPOSITORY}-${leaf}:${VERSION}"]
}

# Runtimes of Cloudera AI; PYTHON is the base image's.
target "cml" {
  matrix     = { stage = ["light", "finetune", "merge", "quantize", "infer"] }
  name       = "${stage}-cml"
  inherits   = ["image"]
  dockerfile = "images/cml/Dockerfile"
  args       = { STAGE = stage, PYTHON = PYTHON }
  contexts   = { stage = "target:${stage}", builder = "target:builder" }
  tags       = ["${REPOSITORY}-${stage}-cml:${VERSION}"]
}
