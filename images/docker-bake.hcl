# The same images with buildx, from the checkout:
#   docker buildx bake --file images/docker-bake.hcl [TARGET...]

variable "REPOSITORY" { default = "localhost/modelmill" }
variable "VERSION" { default = "0.1.0" }
variable "REVISION" { default = "unknown" }
variable "BASE_IMAGE" { default = "" }

group "default" {
  targets = ["light", "finetune", "merge", "quantize", "infer"]
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
  matrix     = { name = ["light", "infer-vllm"] }
  name       = name
  inherits   = ["image"]
  dockerfile = "images/${name}/Dockerfile"
  contexts   = { base = "target:base", builder = "target:builder", modelmill = "target:modelmill" }
  tags       = ["${REPOSITORY}/${name}:${VERSION}"]
  attest     = ["type=provenance,mode=min", "type=sbom"]
}

target "on-torch" {
  matrix     = { name = ["finetune", "merge", "quantize", "infer"] }
  name       = name
  inherits   = ["image"]
  dockerfile = "images/${name}/Dockerfile"
  contexts   = { torch = "target:torch", builder = "target:builder", modelmill = "target:modelmill" }
  tags       = ["${REPOSITORY}/${name}:${VERSION}"]
  attest     = ["type=provenance,mode=min", "type=sbom"]
}
