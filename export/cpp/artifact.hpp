// An artifact's manifest, and its model files after they were checked.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

// manifest.json of a folder. Throws std::runtime_error that names the fault.
nlohmann::json read_manifest(const std::string& folder);

// Path of a model, `asked` by key or the preferred one, after its files were checked: inside the folder, of the hash that the
// manifest gives, an OpenVINO file with its weights. Throws std::runtime_error that names the fault.
std::string checked_model(const std::string& folder, const nlohmann::json& manifest, const std::string& asked);
